"""The reference of the API: its words and examples, read when somebody asks for them.

`web.completion` puts them into the OpenAPI document. The schemas say what is accepted;
this package says what it means.
"""
