"""The settings: the manual's table, their values, and who wins."""

import ast

import pytest
import service as real
from conftest import SECRET

from app import create_app
from storage import engine
from web import keys, settings

OPERATING = (real.ROOT / "docs" / "operating.md").read_text()
NAMES = [setting.name for setting in settings.SETTINGS]


def read(**config):
    return settings.read(config, real.ROOT)


def test_the_table_of_the_manual_is_that_of_the_code():
    table = OPERATING.partition("| setting (environment)")[2].partition("\n\n")[0]
    rows = [line.strip("|").split("|") for line in table.splitlines()[2:]]

    assert [[cell.strip() for cell in row] for row in rows] == [
        [f"`{one.name}`", one.default, one.meaning] for one in settings.SETTINGS
    ]


@pytest.fixture
def environment(monkeypatch):
    """Return a way to set variables; no other setting is in the environment."""
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    return monkeypatch.setenv


def test_without_an_environment_every_setting_has_its_default(environment):
    assert {name: str(read()[name]) for name in NAMES} == {
        "INSTANCE": str(real.ROOT / "instance"),
        "DATABASE_URL": f"sqlite:///{real.ROOT}/instance/abacus.db",
        "JWT_SECRET_KEY": "None",
        "JWT_ALGORITHM": "HS256",
        "JWT_PUBLIC_KEY": "None",
        "JWT_JWKS_URL": "None",
        "JWT_PREVIOUS_KEY": "None",
        "JWT_ISSUER": "None",
        "JWT_AUDIENCE": "None",
        "JWT_LEEWAY": "None",
        "CORS_ORIGINS": "[]",
    }


@pytest.mark.parametrize("name", NAMES)
def test_the_config_of_create_app_wins_over_the_environment(environment, name):
    of_config, of_environment = {
        "JWT_LEEWAY": ("20", "30"),
        "CORS_ORIGINS": ("https://a.example", "https://b.example"),
    }.get(name, ("sqlite:///of/the.config", "sqlite:///of/the.environment"))
    environment(name, of_environment)

    app = create_app({"DATABASE_URL": "sqlite:///unused", name: of_config})

    assert app.config[name] == read(**{name: of_config})[name]
    assert app.config[name] != read()[name]


@pytest.mark.parametrize("name", NAMES)
def test_a_setting_is_read_from_the_environment_unless_it_is_empty(environment, name):
    default, value = read()[name], "20" if name != "CORS_ORIGINS" else "https://a.x"
    environment(name, value)
    assert read()[name] == read(**{name: value})[name] != default
    environment(name, "")
    assert read()[name] == default


def test_the_config_may_say_that_there_is_no_secret(environment):
    environment("JWT_SECRET_KEY", SECRET)

    assert read(JWT_SECRET_KEY=None)["JWT_SECRET_KEY"] is None


def test_the_database_lies_in_the_instance_folder(environment, tmp_path):
    environment("INSTANCE", str(tmp_path))

    app = create_app()

    assert app.instance_path == str(tmp_path)
    assert app.config["DATABASE_URL"] == f"sqlite:///{tmp_path}/abacus.db"
    assert app.extensions["database"].file == tmp_path / "abacus.db"


def test_origins_may_have_commas_between_them_too(environment):
    environment(
        "CORS_ORIGINS", "https://a.example,https://b.example, https://c.example"
    )
    origins = ["https://a.example", "https://b.example", "https://c.example"]

    assert read()["CORS_ORIGINS"] == origins


@pytest.mark.parametrize(
    "origin",
    ["http://localhost:3000", "https://xn--bcher-kva.example", "app://local", "*"],
)
def test_an_origin_may_have_any_scheme_and_a_port(origin):
    assert read(CORS_ORIGINS=origin)["CORS_ORIGINS"] == [origin]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DATABASE_URL", "mysql://host/abacus"),
        ("DATABASE_URL", "abacus.db"),
        ("JWT_SECRET_KEY", "short"),
        ("JWT_SECRET_KEY", "change-me" * 6),
        ("JWT_ALGORITHM", "HS512"),
        ("JWT_ALGORITHM", "none"),
        ("JWT_JWKS_URL", "file:///etc/keys.json"),
        ("JWT_LEEWAY", "ten"),
        ("JWT_LEEWAY", "301"),
        ("JWT_LEEWAY", "nan"),
        ("CORS_ORIGINS", "https://*.shop.example"),
        ("CORS_ORIGINS", r"https://.*\.shop\.example"),
        ("CORS_ORIGINS", "https://a.example https://shop.example/"),
        ("CORS_ORIGINS", "shop.example"),
        ("CORS_ORIGINS", "null"),
    ],
)
def test_a_bad_value_is_refused_with_the_name_of_its_setting(
    environment, tmp_path, name, value
):
    environment("INSTANCE", str(tmp_path))
    environment("JWT_SECRET_KEY", SECRET)
    if name == "JWT_JWKS_URL":
        environment("JWT_ALGORITHM", "RS256")
    environment(name, value)

    refused = (settings.WrongSetting, engine.NotReady, keys.WeakSecret)
    with pytest.raises(refused, match=name):
        keys.keys_are_ready(create_app())


def test_only_the_settings_read_the_environment():
    sources = [*real.ROOT.glob("*.py"), *real.ROOT.glob("*/*.py")]
    readers = set()
    for file in sources:
        if file.parent.name not in ("tests", "demo", "bench"):
            attributes = ast.walk(ast.parse(file.read_text()))
            if any(
                isinstance(node, ast.Attribute)
                and node.attr in ("environ", "getenv")
                and ast.unparse(node.value) == "os"
                for node in attributes
            ):
                readers.add(str(file.relative_to(real.ROOT)))

    assert readers == {"web/settings.py"}
