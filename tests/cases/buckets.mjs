// Print buckets.json: node tests/cases/buckets.mjs > tests/cases/buckets.json
//
// Independent of assignment.py: node's own SHA-256, and BigInt for the 66 bits that
// 52 bits times 10,000 need (a JavaScript number would round them).
import { createHash } from "node:crypto";

const experiment = "exp_abc123";
const emoji = "👩🏽‍🚀";

const scripts = [
  "Zoë", "Zoe\u0308", "用户42", "使用者", "ユーザー", "ﾕｰｻﾞｰ", "사용자", "사용자".normalize("NFD"),
  "пользователь", "корисник", "χρήστης", "ΧΡΉΣΤΗΣ", "օգտատեր", "მომხმარებელი",
  "משתמש", "מִשְׁתַּמֵּשׁ", "مستخدم", "مُسْتَخْدِم", "کاربر", "صارف", "ܡܫܬܡܫܢܐ", "ޔޫޒަރ",
  "उपयोगकर्ता", "ব্যবহারকারী", "ਉਪਭੋਗਤਾ", "વપરાશકર્તા", "ବ୍ୟବହାରକାରୀ", "பயனர்",
  "వినియోగదారు", "ಬಳಕೆದಾರ", "ഉപയോക്താവ്", "පරිශීලක", "ผู้ใช้", "ຜູ້ໃຊ້", "အသုံးပြုသူ", "អ្នកប្រើ",
  "བེད་སྤྱོད་མཁན", "ተጠቃሚ", "ᏗᎬᏙᏗ", "ᐊᑐᖅᑐᖅ", "ⴰⵙⵙⵎⵔⵙ", "ߛߓߍߟߌ", "ᠬᠡᠷᠡᠭᠯᠡᠭᠴᠢ", "ꦥꦔꦁꦒꦺ", "ᬳᬦᬓ᭄",
  "người dùng", "kullanıcı", "İSTANBUL", "ß", "ẞ", "Ærøskøbing", "žluťoučký kůň", "łódź",
  "𐌲𐌿𐍄", "𒀀𒀁", "𓀀𓁐", "𠮷野家", "𝒰𝓈ℯ𝓇", "ＵＳＥＲ", "ﬁ", "①②③", "½", "Ⅷ", "٤٢", "४२", "۴۲",
];
const symbols = [
  "😀", "🏳️‍🌈", "🇳🇱", emoji, "👨‍👩‍👧‍👦", "❤️", "❤", "1️⃣", "🫠", "\u{10FFFF}", "\uFFFD", "\uFFFF",
  "e\u0301\u0302\u0303", "a" + "\u0300".repeat(30), "\u200B", "a\u200Db", "\u200Fabc", "\u202Eabc\u202C",
  "\u2066abc\u2069", "\uFEFFbom", "\u00AD", "\u00A0", "\u2028", "\u2029", "\u3000", "\u1680",
];
const punctuation = [
  " ", "  ", " user", "user ", "a b", "a  b", "\t", "a\tb", "a\nb", "a\r\nb", "\u0001", "\u007F", "\u0085",
  "'", "''", "it's", '"', '"quoted"', "`", "$HOME", "$(id)", "${x}", "`id`", "!", "!!", "!$", "\\", "\\n",
  "\\\\", "a\\", "%s", "%d%%", "%00", "/", "a/b", "../..", "//", "\\\\share", ":", "a:b", ":traffic", "::",
  "#", "# x", ";", "; echo", "&", "&&", "|", "||", "<", ">", "<b>", "(", ")", "()", "[", "]", "[object Object]",
  "{", "}", "{}", "*", "?", "~", "~root", "=", "+", "-", "--", "-n", "-e x", "_", ".", "..", ",", "^", "@",
];
const ordinary = [
  "0", "1", "42", "0042", "4.2", "1e3", "-1", "true", "null", "undefined", "NaN", "user-1", "user-2", "User-1",
  "USER-1", "someone@example.com", "someone+tag@example.com", "auth0|5f7c8ec7c33c6c004bbafe82",
  "550e8400-e29b-41d4-a716-446655440000", "550E8400-E29B-41D4-A716-446655440000", "01ARZ3NDEKTSV4RRFFQ69G5FAV",
  "507f1f77bcf86cd799439011", "did:key:z6MkhaXgBZDvotDkL5257faiztiGiC2QtKLGpbnnEGta2doK",
  "https://example.com/u/1?a=b&c=d#e", "cus_NffrFeUfNV2Hib", "GA1.2.1234567890.1234567890", "+31612345678",
];
// Every step of the padding: SHA-256 works in blocks of 64 bytes.
const lengths = [
  1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 43, 44, 45, 46, 51, 52, 53, 54, 55, 56, 57, 62, 63, 64, 65,
  99, 100, 107, 108, 109, 116, 117, 118, 119, 120, 127, 128, 129, 180, 191, 192, 193, 200, 244, 253, 254, 255,
].map((length) => "x".repeat(length));
const wide = [2, 3, 13, 14, 15, 16, 63, 64, 127, 128, 254, 255].flatMap((length) => [
  "é".repeat(length), "语".repeat(length), "😀".repeat(length),
]);

const pairs = [scripts, symbols, punctuation, ordinary, lengths, wide]
  .flat()
  .map((userId) => [experiment, userId]);
for (const salt of [
  `${experiment}:traffic`, "group:checkout", "group:Größe", "group:支付", "group:a b'c", "exp_1", "e",
  "s".repeat(255), "group:" + emoji,
]) {
  for (const userId of ["user-1", "user-2", "Zoë", "用户42"]) pairs.push([salt, userId]);
}

const vectors = pairs.map(([salt, userId]) => {
  const sha256 = createHash("sha256").update(`${salt}:${userId}`, "utf8").digest("hex");
  const bucket = Number((BigInt("0x" + sha256.slice(0, 13)) * 10000n) / 16n ** 13n);
  return { salt, userId, sha256, bucket };
});

// What an editor would hide, move or merge is written as an escape.
const escaped = (text) =>
  text.replace(/(?! )[\p{C}\p{M}\p{Z}]/gu, (character) =>
    [...Array(character.length).keys()]
      .map((unit) => "\\u" + character.charCodeAt(unit).toString(16).padStart(4, "0"))
      .join(""));
console.log("[\n" + vectors.map((vector) => "  " + escaped(JSON.stringify(vector))).join(",\n") + "\n]");
