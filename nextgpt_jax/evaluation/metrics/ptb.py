r"""Penn Treebank tokens as caption metrics count them, without Java.

pycocoevalcap's PTBTokenizer runs a Java program, the PTBTokenizer of Stanford CoreNLP 3.4.1, with -preserveLines and
-lowerCase, and drops punctuation. `tokenize` gives the same tokens for English text; tests compare both on random text.
It is written from the behavior of that program: a token is what the rule with the longest match makes of it, what may
have to follow counted in, and of rules that match the same length the first one.

Known differences: scripts other than Latin; and a caption is read by itself here, whereas the first word of the next
caption in the file decides there about the full stop after a single letter at the end ("plan B.").
"""

import functools
import re
from typing import NamedTuple

PUNCTUATION = frozenset(["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"])  # dropped
# Brackets are renamed, and since that happens before the text is in lower case, pycocoevalcap does not drop them.
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "{": "-lcb-", "}": "-rcb-", "[": "-lsb-", "]": "-rsb-"}
_ENTITIES = {"&amp;": "&", "&lt;": "<", "&gt;": ">"}
_SIGNS = {"£": "#", "¢": "cents"} | dict.fromkeys("€\x80¤₠", "$")
_FRACTIONS = {"¼": "1/4", "½": "1/2", "¾": "3/4", "⅓": "1/3", "⅔": "2/3"}

# Abbreviations that keep their full stop: those that end a word even if letters follow ("etc.a": two tokens); others
# ("mr.a" is one); those that begin with a capital; those in small letters; and those that keep it before a number.
_ENDING = """al ala apr ariz assn aug bancorp bhd bldg blvd bros calif co colo conn corp cos ct dak dec esq est etc
    ext feb fla fri ga inc ind intl jan jr jul jun kan kans ky ltd mar md mich minn mo mon mont neb nev nov oct okla
    penn plc rd rt sep sept seq sq sr sys tel tenn thu thurs tue tues univ va vt wed wis wisc wyo
    ed\\.d ph\\.d""".split()
_ANYWHERE = """adj adm adv alex assoc asst atty attys ave brig capt cf cie cmdr col comdr cpl dept det dr drs elec ens
    ft gen gov govs hon insp invt jos lieut lt maj messrs mlle mme mr mrs ms msgr mt natl pfc ph pres prof profs pvt
    rep reps rev sen sens sfc sgt spc st ste supt supts treas vs wm""".split()
_CAPITAL = "ark az del ill la mass miss ore pa tex wash".split()
_SMALL = "mfg mtg pte ptes pty ptys".split()
_NUMBERED = "art arts ca fig figs no nos op para paras pp prop sec sect sects secs".split()
# Words that begin a sentence: a single letter before them ends one, and does not keep its full stop.
_FIRST = """A About According Additionally After An As At But Did During Earlier He Her Here How However If In It Last
    Many More Mr\\. Ms\\. Now Once One Other Our She Since So Some Such That The Their Then There These They This We
    What When While Who Why Yet You""".split()

_EXTENSIONS = """bat bmp c class cgi cpp dll doc docx exe gif gz h htm html jar java jpeg jpg mov mp3 pdf php pl png ppt
    ps py sql tar txt wav x xml zip""".split()

_APOS = "(?:['\x92’]|&apos;)"
_APOS_LIKE = "(?:['\x92’`\x91‘‛]|&apos;)"
_LETTER = (
    r"(?:[^\W\d_²³¹¼-¾\u2070-\u218b\u2460-\u24ff\u2776-\u2793\U00010000-\U0010ffff]|[\xad\u0300-\u036f]"
    "|&[aeiouAEIOU](?:acute|grave|uml);)"
)
_WORD = rf"{_LETTER}(?:{_LETTER}|\d)*(?:[.!?]{_LETTER}(?:{_LETTER}|\d)*)*"
_NUMBER = r"(?:\d*(?:[.:,\xad]\d+)+|\d+)"
_ALNUM = r"[^\W_²³¹¼-¾\U00010000-\U0010ffff]+"
_NAME = "[A-Za-z0-9]+"
_ACRONYM = r"[A-Za-z](?:\.[A-Za-z])*\."
_PREFIX = f"(?:[dDoOlL]{_APOS_LIKE}[A-Za-z0-9])?"
_THING = rf"{_PREFIX}{_ALNUM}(?:[-_\u058a\u2010\u2011]{_PREFIX}{_ALNUM})*"
_SPELLED = r"[A-Za-z0-9][A-Za-z0-9.,\xad]*+(?:-(?:[A-Za-z](?:\.[A-Za-z])+\.|[A-Za-z0-9\xad]+))+"
_DASHED = "[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}"
_SLASHED = rf"{_DASHED}(?:\\?/{_DASHED}){{1,2}}"
_CLITIC = f"{_APOS}(?:[msdMSD]|(?i:re|ve|ll))"
_BLANK = r"(?:[ \t\xa0\u2000-\u200a\u3000\n]|&nbsp;)"
_NAME_IN_TAG = "[A-Za-z][A-Za-z0-9:.-]*"
_QUOTED = r"['\"][^\n'\"]*['\"]"
_TAG = rf"<(?:[!?][A-Za-z-][^>\n]*|/?{_NAME_IN_TAG}(?: +(?:{_NAME_IN_TAG}(?: *= *{_QUOTED})?|{_QUOTED}| */))* */?)>"
_NO_URL = r" \t\n\f\r\"<>|()"  # characters that are in no address
_NO_END = _NO_URL + ".!?{},-"  # and those that are not its last one
_HOST = f"[^{_NO_URL}`'{{}}!,-_$]"
_EYES, _NOSE, _MOUTH = "[<>]?[:;=]", "[-o*']", r"[]()[DPdpO\\{@|]"
_EYE = "[-^x=~<>']"
_FEW, _GAP = "[0-9]{2,4}", "[- \xa0]"


def _kept(words: list[str]) -> str:
    return rf"(?:{'|'.join(sorted(words, key=len, reverse=True))})\."


class _Rule(NamedTuple):
    """A pattern whose first group, or whole match if it has none, is a token; and what is done with the token."""

    pattern: re.Pattern
    change: str = ""


def _rule(pattern: str, change: str = "", flags: int = 0) -> _Rule:
    return _Rule(re.compile(pattern, flags), change)


_I = re.IGNORECASE
# The order decides between matches of one length.
_RULES = (
    _rule(r"c\+\+|[cf]#", flags=_I),
    _rule(r"(can)not|(gon)na|(got)ta|(lem)me|(gim)me|(wan)na|('t)(?:is|was)", flags=_I),
    _rule(_TAG, "blanks"),
    _rule(r"&(?:MD|mdash|ndash);|[\x96\x97–—―]", "dash"),
    _rule("&amp;", "entities"),
    _rule(r"&(?:HT|TL|UR|LR|QC|QL|QR|odq|cdq|#[0-9]+);"),
    _rule(f"({_WORD}){_CLITIC}", "soft"),
    _rule(rf"([A-Za-z\xad]*[A-MO-Za-mo-z]\xad*)[nN]{_APOS_LIKE}[tT]", "soft"),
    _rule(_WORD, "soft"),
    _rule(f"{_APOS}n{_APOS}?", flags=_I),
    _rule(f"[lLdDjJ]{_APOS}"),
    _rule(f"(?:dunkin|somethin|ol){_APOS}|{_APOS}(?:em|till?|cause|[2-9]0s)", flags=_I),
    _rule(f"[A-HJ-XZn]{_APOS_LIKE}{_LETTER}{{2,}}"),
    _rule(f"{_LETTER}+[aeiouyAEIOUY]{_APOS_LIKE}[aeiouA-Z]{_LETTER}*"),
    _rule(f"(?:cont'd\\.|nor'easter|c'mon|e'er|s'mores|ev'ry|li'l|nat'l)|o{_APOS_LIKE}o", flags=_I),
    _rule(f"([yY]{_APOS}){_LETTER}"),
    _rule(rf"(?i:https?)://[^{_NO_URL}{{}}]+[^{_NO_END}]"),
    _rule(
        rf"(?:www\.(?:[^{_NO_URL}.!?{{}},]+\.)+[a-zA-Z]{{2,4}}|(?:{_HOST}+\.)+(?i:com|net|org|edu))"
        rf"(?:/[^{_NO_URL}]+[^{_NO_END}])?"
    ),
    _rule(
        rf"(?:&lt;|<)?[A-Za-z0-9][^{_NO_URL}{{}}\xa0]*@[^{_NO_URL}{{}}.\xa0]+(?:\.[^{_NO_URL}{{}}.\xa0]+)*(?:&gt;|>)?"
    ),
    _rule(rf"@[A-Za-z_][A-Za-z_0-9]*|#{_LETTER}+"),
    _rule(f"({_CLITIC})[^A-Za-z]", "quotes"),
    _rule(f"([nN]{_APOS_LIKE}[tT])[^A-Za-z]", "quotes"),
    _rule(r"\d{1,2}[-/]\d{1,2}[-/]\d{2,4}"),
    _rule(f"[-+]?{_NUMBER}", "soft"),
    _rule("[⁺⁻₊₋]?(?:[⁰¹²³⁴-⁹]+|[₀-₉]+)"),
    _rule(r"(?:\d{1,4}[- \xa0])?\d{1,4}\\?/\d{1,4}", "blanks"),
    _rule("[¼½¾⅓-⅞]", "fractions"),
    _rule(
        rf"(?i:-[LR][CRS]B-|C\.D\.s|pro-|anti-|S&(?:amp;)?(?:P-500|Ls)|cap{_APOS}n|c{_APOS}est)",
        "entities",
    ),
    _rule(_SLASHED),
    _rule(r"[A-Z]*\$|#"),
    _rule("[¢£¤¥\x80₠₤€]", "signs"),
    _rule(rf"([A-Za-z])\.{_BLANK}+(?:{'|'.join(f'{word[0]}(?i:{word[1:]})' for word in _FIRST)}|{_TAG}){_BLANK}"),
    _rule(rf"({_kept(_NUMBERED)}){_BLANK}?\d", flags=_I),
    _rule(
        rf"((?i:{_kept(_ENDING)})|(?:{'|'.join(f'{word[0].upper()}(?i:{word[1:]})' for word in _CAPITAL)})\."
        rf"|{_kept(_SMALL)})(?s:..)?"
    ),
    _rule(rf"(?i:{_kept(_ANYWHERE)})|{_ACRONYM}"),
    _rule(rf"({_APOS}\d\d){_BLANK}"),
    _rule(rf"({_NAME}(?:\.{_NAME})*\.(?:{'|'.join(_EXTENSIONS)}))(?:{_BLANK}|[.?!,])", flags=_I),
    _rule(rf"({_WORD}\.)[,;:]", "soft"),
    _rule(
        rf"(?:\([0-9]{{2,3}}\)[ \xa0]?|\+{{0,2}}(?:{_FEW}{_GAP}){{1,2}})[0-9]{{3,4}}{_GAP}?[0-9]{{3,5}}"
        rf"|(?:\+{{0,2}}{_FEW}\.)?{_FEW}\.[0-9]{{3,4}}\.[0-9]{{3,5}}",
        "phone",
    ),
    _rule('"|&quot;', "quotes"),
    _rule("&lt;|&gt;", "entities"),
    _rule("<<|>>|[<>]"),
    _rule(rf"({_EYES}{_NOSE}?{_MOUTH})[^A-Za-z0-9]", "brackets"),
    _rule(rf"{_EYE}_{_EYE}|\({_EYE}[_.-]?{_EYE}\)", "brackets"),
    _rule(r"[(){}\[\]]", "bracket"),
    _rule("-+", "dashes"),
    _rule(r"\.\.\.+|[\x85…]|\.[ \xa0](?:\.[ \xa0])+\.", "ellipsis"),
    _rule(r"@+|#+|_+|\*+|(?:\\\*){1,3}|[,;:、]|[?!]+|[.¡¿=/]"),
    _rule(rf"({_SPELLED}\.)[,;:]", "soft"),
    _rule(rf"({_THING}\.)[,;:]"),
    _rule(_THING),
    _rule(rf"({_SPELLED})[^A-Za-z0-9]", "soft"),
    _rule(r"([A-Z]+(?:(?:[+&]|&amp;)[A-Z]+)+\.)[,;:]", "entities"),
    _rule(r"[A-Z]+(?:(?:[+&]|&amp;)[A-Z]+)+", "entities"),
    _rule(f"(')[A-Za-z](?!{_BLANK})."),
    _rule(_CLITIC, "quotes"),
    _rule("[`\x91-\x94‘-‟‹›«»]{1,2}", "quotes"),
    _rule(f"''|{_APOS}", "quotes"),
    _rule(r"[+%&~^|\\¦§¨©¬®¯°-³´-º×÷‖‗†-‣‰-‸※‾-⁂⁄ⁱ⁰⁴-₎ₐ-ₜ℀-⅏←-⯿、-。〒！-＠［-ｏ]"),
)


def _replaced(table: dict[str, str], token: str) -> str:
    for old, new in table.items():
        token = token.replace(old, new)
    return token


_ROUND = {"(": "-lrb-", ")": "-rrb-"}
_QUOTES = (
    {"&quot;": "''", "&apos;": "'", '"': "''"}
    | dict.fromkeys("\x91‘‛‹", "`")
    | dict.fromkeys("\x92’›", "'")
    | dict.fromkeys("\x93“«", "``")
    | dict.fromkeys("\x94”»", "''")
)
_CHANGES = {
    "": lambda token: token,
    "soft": lambda token: token.replace("\xad", "") or "-",
    "blanks": lambda token: token.replace(" ", "\xa0"),
    "phone": lambda token: _replaced(_ROUND, token.replace(" ", "\xa0")),
    "dash": lambda token: "--",
    "dashes": lambda token: "--" if 3 <= len(token) <= 4 else token,
    "ellipsis": lambda token: "...",
    "brackets": functools.partial(_replaced, _ROUND),
    "bracket": functools.partial(_replaced, _BRACKETS),
    "entities": functools.partial(_replaced, _ENTITIES),
    "signs": functools.partial(_replaced, _SIGNS),
    "fractions": functools.partial(_replaced, _FRACTIONS),
    "quotes": functools.partial(_replaced, _QUOTES),
}
_PLAIN = re.compile(r"([A-Za-z]+)(?:[,;:?!.]?[ \n])")  # most words; no rule matches more of them, but for these:
_ASSIMILATED = frozenset("cannot gonna gotta lemme gimme wanna".split())
_STOPPED = frozenset([*_ENDING, *_ANYWHERE, *_CAPITAL, *_SMALL, *_NUMBERED])
_BLANKS = re.compile(f"{_BLANK}+")
_LINES = re.compile("\r|\u2028|\u2029|\x0b|\x0c")


def _tokens(text: str) -> list[str]:
    found, place, end = [], 0, len(text)
    while place < end:
        if blank := _BLANKS.match(text, place):
            place = blank.end()
            continue
        plain = _PLAIN.match(text, place)
        if plain:
            word = plain[1].lower()
            stop = text[plain.end(1)] == "."
            if word not in _ASSIMILATED and not (stop and (len(word) == 1 or word in _STOPPED)):
                found.append(word)
                place = plain.end(1)
                continue
        best, change = None, ""
        for pattern, name in _RULES:
            match = pattern.match(text, place)
            if match and (best is None or match.end() > best.end()):
                best, change = match, name
        if best is None:  # a character that belongs to no token
            place += 1
            continue
        group = best.lastindex or 0
        found.append(_CHANGES[change](best[group]).lower())
        place = best.end(group)
    return found


@functools.lru_cache(maxsize=1 << 17)
def tokenize(caption: str) -> str:
    """The tokens of a caption in lower case with blanks between them, without punctuation, as pycocoevalcap's
    PTBTokenizer gives them. A token may have a no-break space in it ("1\\xa01/2")."""
    return " ".join(
        token for token in _tokens(_LINES.sub(" ", caption.replace("\n", " ")) + "\n\n") if token not in PUNCTUATION
    )
