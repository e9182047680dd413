"""The normal form of short answers that the evaluation of VQA compares (Antol et al., 2015)."""

import re

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_PERIOD = re.compile(r"\.(?![0-9])")
_GROUPED = re.compile(r"[0-9],[0-9]")
_PERIODS = 32  # of an answer that are removed at most: the original gives a flag (re.UNICODE) in the place of a count
_ARTICLES = {"a", "an", "the"}
_NUMBERS = {"none": "0", "zero": "0"} | {
    word: str(number) for number, word in enumerate("one two three four five six seven eight nine ten".split(), 1)
}
_CONTRACTED = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
    he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've
    o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's
    someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've
    there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's
    what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've
    wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
""".split()
# A word that lacks one of the apostrophes gets it. The last entry is as in the original, whatever was meant.
_CONTRACTIONS = {
    word[:place] + word[place + 1 :]: word for word in _CONTRACTED for place, sign in enumerate(word) if sign == "'"
} | {"somebody'd": "somebodyd"}


def one_line(answer: str) -> str:
    """An answer without line ends, tabs and blanks around it: all that is done where all annotators agree."""
    return answer.replace("\n", " ").replace("\t", " ").strip()


def normalized(answer: str) -> str:
    """An answer in lower case without punctuation and articles, with digits and contractions for their spellings.

    Equal to `processPunctuation` and `processDigitArticle` of the official evaluation, in every character: a
    punctuation mark that has a blank beside it anywhere in the answer is removed wherever it is, any other is replaced
    with a blank, and all are removed from an answer with a number such as 1,000.
    """
    answer = one_line(answer)
    grouped = _GROUPED.search(answer)
    result = answer
    for mark in _PUNCTUATION:
        removed = grouped or f"{mark} " in answer or f" {mark}" in answer
        result = result.replace(mark, "" if removed else " ")
    words = _PERIOD.sub("", result, count=_PERIODS).lower().split()
    words = [word for word in (_NUMBERS.get(word, word) for word in words) if word not in _ARTICLES]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words)
