"""Small talk and questions about numbers, answered in words."""

import random

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
NUMBERS = (*WORDS, "ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen")


def phrases(text: str) -> tuple[str, ...]:
    """The phrases of a block of text, separated by bars and line ends."""
    return tuple(phrase.strip() for phrase in text.replace("\n", "|").split("|") if phrase.strip())


def a(noun: str) -> str:
    """A noun with its indefinite article: "a seven", "an eight", "an 8"."""
    return f"an {noun}" if noun[0] in "aeiou8" and noun != "one" else f"a {noun}"


def parity(n: int) -> str:
    return "odd" if n % 2 else "even"


def sentence(text: str) -> str:
    """The text with a capital letter."""
    return text[0].upper() + text[1:]


_WHO = "I am a small model that knows the digits of a keypad."
_CAN = "I can draw a digit, play its tone, let it move, tell you what you show me, and answer small questions."
SMALL_TALK = {
    "Hello! Which digit would you like?": phrases("""
        hello | hi | hey | hello there | hi there | good day | greetings | hello! | hello you | hi, friend
        hello again | hello to you | hi again
    """),
    "Good morning!": phrases("""
        good morning | good morning, friend | a good morning to you | good morning to all
    """),
    "Good evening!": phrases("""
        good evening | good evening, friend | a good evening to you | good evening to all
    """),
    "I am fine, thank you.": phrases("""
        how are you? | how are you doing? | how is it going? | are you well? | how do you feel today?
        how do you do? | how are you this morning? | is everything fine? | how are things today?
    """),
    "You are welcome!": phrases("""
        thanks | thank you | thanks a lot | thank you very much | many thanks | great, thank you | thanks!
        that is very nice, thank you | very good, thanks | well done, thank you | thank you, that is all
        that is nice of you, thanks | thank you so much | thanks for that | that was a nice tone | that was a nice video
        thank you, that was very nice | a nice picture, thank you | thanks, that was good
    """),
    _WHO: phrases("""
        who are you? | what are you? | what is your name? | tell me who you are | do you have a name?
        are you a robot? | are you a person? | are you a human? | introduce yourself | are you a program?
        tell me your name | is there a person there? | are you a person or a robot? | what kind of program is it?
    """),
    _CAN: phrases("""
        what can you do? | what do you know? | how can you help me? | what can i ask you? | help | can you help me?
        what are you good at? | what can i do here? | tell me what you can do | how do you work?
        what are you able to do? | what can you do for me today? | what would you do for me?
    """),
    "I can draw the digits from zero to nine.": phrases("""
        what can you draw? | can you draw? | do you know how to draw? | which digits can you draw?
        do you draw pictures? | which pictures can you make? | can you paint? | what pictures do you have?
        are you able to draw? | what kind of pictures can you draw? | do you like to draw? | can you write?
    """),
    "I can play the tones of the keys from zero to nine.": phrases("""
        what can you play? | can you play tones? | which tones can you play? | do you know how to play tones?
        what tones do you have? | can you make sounds? | which sounds can you make? | can you dial?
        are you able to play a tone? | which keys can you play? | do you play tones? | what sounds do you know?
    """),
    "I can show a digit that moves left, right, up or down.": phrases("""
        can you make videos? | which videos can you make? | what videos do you have? | can you show a video?
        what can you animate? | are you able to make a video? | do you make videos? | can you animate digits?
        in which directions can a digit move? | what kind of videos can you show? | which way can a digit go?
    """),
    "Yes, I know the tones of all ten keys.": phrases("""
        can you hear? | do you have ears? | can you hear tones? | do you hear me? | can you listen to a tone?
        are you able to hear? | do you know the tones of the keys? | can you hear well? | do you hear sounds?
    """),
    "Yes, I can see which way a digit moves.": phrases("""
        can you see videos? | can you watch a video? | can you see which way a digit moves? | can you watch videos?
        do you see where a digit goes? | are you able to watch a video? | can you tell in which direction it moves?
    """),
    "A tone is the sound of a key on a telephone.": phrases("""
        what is a tone? | what are tones? | what is the tone of a key? | why does a key make a sound?
        tell me about tones | what is a telephone tone? | what is a key tone? | what does a key do?
    """),
    "There are ten keys with digits, from zero to nine.": phrases("""
        how many keys are there? | how many keys does a telephone have? | which keys are there?
        how many keys do you know?
        how many tones are there? | how many keys are on a keypad? | how many tones do you know?
    """),
    "Yes, I like all digits.": phrases("""
        do you like digits? | do you like numbers? | are digits fun? | do you love numbers? | do you enjoy digits?
        are numbers fun for you? | do you find digits nice? | do you like tones? | do you like to play?
        do you like keys?
    """),
    "I like seven most.": phrases("""
        what is your favourite digit? | which digit do you like most? | do you have a favourite number?
        what digit do you like best? | what number do you love most? | your favourite digit?
        what is your favourite key?
        do you have a favourite tone? | which tone do you like most? | your favourite tone?
    """),
    "Why was six afraid of seven? Because seven ate nine.": phrases("""
        tell me a joke | do you know a joke? | make me laugh | say something funny | a joke, please
        please tell a joke | can you tell me a joke? | tell me something funny
    """),
    "Goodbye!": phrases("""
        bye | goodbye | see you | see you later | bye bye | have a nice day | good night | i have to go
        goodbye, friend | thanks and goodbye | that was all, bye | goodbye for now | bye and thank you
    """),
    "There are ten digits, from zero to nine.": phrases("""
        how many digits are there? | how many digits exist? | which digits are there? | list the digits
        what is a digit? | how many digits does a keypad have? | how many digits do we use? | what are digits?
        how many digits are on a keypad? | does a keypad have all digits? | how many digits can you read?
        do you know all ten digits? | how many of the digits do you know? | are there ten digits?
    """),
    "A keypad has the digits one to nine in three rows, and zero below.": phrases("""
        what does a keypad look like? | what is a keypad? | describe a keypad | how does a keypad look?
        tell me about keypads | what is on a keypad? | how are the digits set on a keypad?
    """),
    "Yes, I can read handwritten digits.": phrases("""
        can you read? | can you see? | do you have eyes? | can you read handwriting? | can you read digits?
        are you able to read handwriting? | could you read a digit? | can you look at pictures?
    """),
    "I only know digits.": phrases("""
        what is the weather like? | what time is it? | what is the capital of france? | where do you live?
        draw a cat | can you draw a house? | paint me a dog | show me a picture of a tree | sing a song
        do you like music? | how old are you? | who won the game? | what day is it? | draw the letter b
        write a poem | what did you eat? | is it going to rain? | make a picture of a car | sketch a horse
        play a song | play some music | show me a video of a cat | make a video of a dog | let a horse run
        play a nice tune
        animate a car | sing for me | show a dog that runs | play the sound of a bird
    """),
    "I am glad to hear that.": phrases("""
        i am fine | i am happy | i am doing well | i feel good today | today is a good day | i like you
        you are nice | you are very good | that was great | i like your digits | this is fun
    """),
    "I am sorry. I will try to do better.": phrases("""
        that is wrong | this is not right | no, that is not it | you are wrong | i do not like it
        that was not good | this does not look right | i am sad
    """),
    "All right.": phrases("""
        ok | okay | yes | no | fine | good | i see | sure | great | nice | very good | well | right | wait a moment
        no picture, please | please stop | do not draw anything | nothing, thank you | no tone, please
        no video, please
        do not play anything
    """),
}
_SHAPES = (
    "A zero is a closed oval.",
    "A one is a single upright stroke.",
    "A two is a hook that ends in a flat line.",
    "A three is two bows, one above the other.",
    "A four is an open corner crossed by an upright stroke.",
    "A five is a bar, a short stroke and a bow.",
    "A six is a curve that ends in a ring below.",
    "A seven is a bar with a slanted stroke.",
    "An eight is two rings, one above the other.",
    "A nine is a ring with a stroke below.",
)


def _next(rng: random.Random, n: int, _: int) -> tuple[str, str]:
    questions = phrases("""
        what comes after {}? | what number comes after {}? | which number follows {}? | what is next after {}?
        which digit comes after {}? | what comes right after {}? | after {} comes what? | what follows {}?
        tell me what comes after {} | which digit do you find after {}? | after {} comes which digit?
    """)
    question = rng.choice(questions)
    return question.format(_name(rng, n)), f"{NUMBERS[n + 1]} comes after {WORDS[n]}."


def _previous(rng: random.Random, *_: int) -> tuple[str, str]:
    n = rng.randrange(1, 10)
    questions = phrases("""
        what comes before {}? | what number comes before {}? | which number is before {}?
        which digit comes right before {}? | before {} comes what? | which digit stands before {}?
        tell me what comes before {} | which digit do you find right before {}? | what is right before {}?
    """)
    question = rng.choice(questions)
    return question.format(_name(rng, n)), f"{WORDS[n - 1]} comes before {WORDS[n]}."


def _odd_or_even(rng: random.Random, n: int, _: int) -> tuple[str, str]:
    questions = phrases("""
        is {} odd or even? | is {} even or odd? | is the number {} odd or even? | odd or even: {}?
        is {} an odd number? | is {} an even number? | is the digit {} even? | is {} odd?
        tell me whether {} is odd or even
        is the digit {} an odd one? | is {} an even or an odd one? | say whether {} is even or odd | tell me: is {} odd?
    """)
    question = rng.choice(questions)
    return question.format(_name(rng, n)), f"{WORDS[n]} is {parity(n)}."


def _spelling(rng: random.Random, n: int, _: int) -> tuple[str, str]:
    questions = phrases("""
        how do you spell {}? | spell {} | how is {} spelled? | can you spell {}? | what letters make {}?
        spell the number {} | how does one spell {}? | spell the word {} | please spell {}
    """)
    question = rng.choice(questions)
    return question.format(_name(rng, n)), f"{WORDS[n]} is spelled {' '.join(WORDS[n])}."


def _sum(rng: random.Random, n: int, m: int) -> tuple[str, str]:
    questions = phrases("""
        what is {} plus {}? | how much is {} plus {}? | add {} and {} | {} plus {}? | {} + {} = ?
        what is the sum of {} and {}? | what do {} and {} make? | what do you get if you add {} and {}?
        tell me how much {} plus {} is | {} and {} together make what? | {} plus {} makes what?
        add the numbers {} and {}
    """)
    question = rng.choice(questions)
    return question.format(_name(rng, n), _name(rng, m)), f"{WORDS[n]} plus {WORDS[m]} is {NUMBERS[n + m]}."


def _difference(rng: random.Random, n: int, m: int) -> tuple[str, str]:
    low, high = min(n, m), max(n, m)
    questions = phrases("""
        what is {} minus {}? | how much is {} minus {}? | {} minus {}? | {} - {} = ? | take {1} from {0}
        what do you get if you take {1} from {0}? | what is left of {} without {}? | {} minus {} makes what?
        what is left when you take {1} from {0}? | tell me what {} minus {} is | how much is left of {} without {}?
    """)
    question = rng.choice(questions)
    answer = f"{WORDS[high]} minus {WORDS[low]} is {WORDS[high - low]}."
    return question.format(_name(rng, high), _name(rng, low)), answer


def _larger_of_two(rng: random.Random, n: int, m: int) -> tuple[str, str]:
    low, high = min(n, m), max(n, m)
    if n == m:
        low, high = (n, n + 1) if n < 9 else (8, 9)
    larger = rng.random() < 0.5
    adjective = rng.choice(("larger", "bigger", "greater") if larger else ("smaller", "less"))
    questions = phrases("""
        which is {0}, {1} or {2}? | what is {0}, {1} or {2}? | which number is {0}: {1} or {2}?
        between {1} and {2}, which one is {0}? | {1} or {2}, which is {0}? | is {1} or {2} {0}?
        tell me which one is {0}, {1} or {2} | of {1} and {2}, which is {0}? | which is the {0} one, {1} or {2}?
        tell me the {0} one of {1} and {2} | say which number is {0}, {1} or {2}
    """)
    question = rng.choice(questions)
    pair = rng.sample((low, high), 2)
    answer = f"{WORDS[high]} is larger than {WORDS[low]}." if larger else f"{WORDS[low]} is smaller than {WORDS[high]}."
    return question.format(adjective, _name(rng, pair[0]), _name(rng, pair[1])), answer


def _counting(rng: random.Random, n: int, m: int) -> tuple[str, str]:
    low, high = min(n, m), max(n, m)
    low = min(low, 7)
    high = max(high, low + 2)
    questions = phrases("""
        count from {} to {} | can you count from {} to {}? | count {} to {} | count up from {} to {}
        list the digits from {} to {} | say the digits from {} to {} | which digits go from {} to {}?
        list all numbers from {} to {} | count for me from {} to {} | please count up, from {} to {}
    """)
    question = rng.choice(questions)
    return question.format(_name(rng, low), _name(rng, high)), ", ".join(WORDS[low : high + 1]) + "."


def _letters(rng: random.Random, n: int, _: int) -> tuple[str, str]:
    questions = phrases("""
        how many letters are in {}? | how many letters does {} have? | how long is the word {}?
        count the letters of {} | how many letters has the word {}? | how many letters make {}? | how long is {}?
        tell me how many letters {} has | how many letters are there in {}? | how many letters has {}?
    """)
    question = rng.choice(questions)
    return question.format(_name(rng, n)), f"{WORDS[n]} has {WORDS[len(WORDS[n])]} letters."


def _shape(rng: random.Random, n: int, _: int) -> tuple[str, str]:
    questions = phrases("""
        what does {} look like? | describe {} | how does one write {}? | how do you draw {}? | how is {} drawn?
        describe {} in words | tell me in words what {} looks like | what shape has {}? | explain {} in words
        in words, what does {} look like? | tell me how to draw {} | tell me how one writes {} | how is {} made?
    """)
    question = rng.choice(questions)
    thing = rng.choice((a(WORDS[n]), a(str(n)), f"the digit {WORDS[n]}", f"the digit {n}", f"the number {WORDS[n]}"))
    return question.format(thing), _SHAPES[n]


def _between_or_double(rng: random.Random, *_: int) -> tuple[str, str]:
    n = rng.randrange(1, 9)
    if rng.random() < 0.5:
        questions = phrases("""
            what is between {} and {}? | which number is between {} and {}? | what comes between {} and {}?
            which digit lies between {} and {}? | between {} and {} comes what? | what do you find between {} and {}?
        """)
        question = rng.choice(questions)
        answer = f"{WORDS[n]} is between {WORDS[n - 1]} and {WORDS[n + 1]}."
        return question.format(_name(rng, n - 1), _name(rng, n + 1)), answer
    questions = phrases("""
        what is two times {}? | what is {} doubled? | double {} | how much is twice {}? | what is {} times two?
        what do you get for twice {}? | what is the double of {}? | what do you get if {} is doubled?
        how much is two times {}? | tell me what two times {} is | what do you get when you double {}?
    """)
    question = rng.choice(questions)
    return question.format(_name(rng, n)), f"twice {WORDS[n]} is {NUMBERS[2 * n]}."


def _comparison(rng: random.Random, n: int, m: int) -> tuple[str, str]:
    larger = rng.random() < 0.6
    adjective = rng.choice(("larger", "bigger") if larger else ("smaller", "less"))
    question = rng.choice(("is {} {} than {}?", "is {} {} than {}?", "is the number {} {} than {}?"))
    true = n > m if larger else n < m
    answer = f"{WORDS[n]} is {'larger' if n > m else 'smaller'} than {WORDS[m]}, so {'yes' if true else 'no'}."
    if n == m:
        answer = f"both are {WORDS[n]}, so no."
    return question.format(_name(rng, n), adjective, _name(rng, m)), answer


def _word(rng: random.Random, n: int, _: int) -> tuple[str, str]:
    questions = phrases("""
        say {} | just say {} | say {} and nothing else | do not draw, just say {} | only say {}
        no picture, just say {} | say the word {} | just write the word {} | without a picture, say {}
        no tone, just say {} | no video, just say {} | do not play it, just say {} | without a tone, say {}
        do not move it, just say {} | without a video, just say {} | do not play anything, only say {}
    """)
    return rng.choice(questions).format(_name(rng, n)), f"{WORDS[n]}."


def _opposite(rng: random.Random, *_: int) -> tuple[str, str]:
    pair = rng.choice((("left", "right"), ("right", "left"), ("up", "down"), ("down", "up")))
    questions = phrases("""
        what is the opposite of {}? | what is opposite to {}? | which direction is opposite to {}? | the opposite of {}?
        which way is the other way from {}? | what is the other direction of {}? | name the opposite of {}
    """)
    return rng.choice(questions).format(pair[0]), f"the opposite of {pair[0]} is {pair[1]}."


_FACTS = {
    _opposite: 1,
    _next: 1,
    _previous: 1,
    _odd_or_even: 1,
    _spelling: 1,
    _sum: 3,
    _difference: 2,
    _larger_of_two: 2,
    _comparison: 2,
    _counting: 2,
    _letters: 1,
    _shape: 1,
    _between_or_double: 1,
    _word: 1,
}  # with sampling weights: the more to memorize, the higher


def fact(rng: random.Random) -> tuple[str, str]:
    """A question about numbers and its answer, in lower case."""
    n, m = rng.randrange(10), rng.randrange(10)
    return rng.choices(tuple(_FACTS), tuple(_FACTS.values()))[0](rng, n, m)


def fact_about(rng: random.Random, n: int) -> tuple[str, str]:
    """A question about one digit and its answer, which names no other digit, in lower case."""
    return rng.choice((_odd_or_even, _spelling, _shape))(rng, n, n)


def _name(rng: random.Random, n: int) -> str:
    return NUMBERS[n] if rng.random() < 0.7 else str(n)
