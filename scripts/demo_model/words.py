"""Random words, names and values; some word parts are held out for the check.

The check builds its tool names and nouns only from held-out parts, so none of those names can
have been trained on.
"""

from __future__ import annotations

import string
from dataclasses import dataclass
from random import Random

_LETTERS = "eeeaaaiiooutttnnnssrrlldchmpgbfywkvxqjz"  # common letters come up more often
_ONSETS = ("b", "br", "d", "dr", "f", "g", "gl", "h", "k", "kr", "l", "m", "n", "p", "pl", "r",
           "s", "st", "t", "tr", "v", "w", "z", "ch", "sh", "j")  # fmt: skip
_VOWELS = ("a", "e", "i", "o", "u", "ai", "ea", "ou")
_ENDS = ("", "", "n", "r", "l", "s", "x", "nd", "k")
_HOLD_EVERY = 5

_VERBS = ("get", "fetch", "find", "read", "load", "check", "query", "list", "show", "compute",
          "convert", "lookup", "search", "count", "track", "measure", "ask", "give", "open",
          "run", "view", "make", "test", "call", "use", "scan")  # fmt: skip
_HELD_VERBS = ("retrieve", "obtain", "inspect", "pull", "resolve", "collect")
_NOUNS = ("price", "balance", "status", "weather", "rate", "score", "schedule", "address",
          "height", "weight", "speed", "level", "owner", "title", "author", "route", "ticket",
          "invoice", "budget", "salary", "menu", "recipe", "size", "color", "version", "license",
          "rating", "review", "forecast", "population", "distance", "duration", "capacity",
          "discount", "tax", "phone number", "email address", "opening hours", "release date",
          "unit price", "stock level", "exchange rate", "flight time", "account balance",
          "battery level", "page count", "file size", "word count", "error rate", "room number")  # fmt: skip
_HELD_NOUNS = ("temperature", "altitude", "deadline", "warranty", "latitude", "revenue", "parcel",
               "humidity", "mileage", "voltage", "queue length", "door code", "seat number",
               "harvest", "calories", "pressure", "subscription", "royalty")  # fmt: skip
_NOUNS_ZH = ("价格", "天气", "余额", "状态", "电话", "地址", "高度", "重量", "时间表", "评分",
             "人口", "汇率", "库存", "票价", "版本", "速度", "距离", "名称", "温度", "菜单")  # fmt: skip
_HELD_NOUNS_ZH = ("面积", "海拔", "湿度", "邮编", "工资", "销量")
_PARAMS = ("city", "country", "user", "product", "station", "name", "item", "place", "company",
           "symbol", "order_id", "user_id", "title", "file", "key", "code", "language", "team",
           "topic", "address", "room", "model", "id", "query", "location", "account")  # fmt: skip
_NUMBER_PARAMS = ("limit", "count", "days", "page", "amount", "year", "size", "hours", "level",
                  "max_results", "quantity", "number")  # fmt: skip
_CITIES = ("Paris", "London", "Berlin", "Tokyo", "Rome", "Madrid", "Oslo", "Cairo", "Lima",
           "Vienna", "Boston", "Chicago", "Seattle", "Shanghai", "Beijing", "Sydney", "Delhi",
           "New York", "San Francisco", "Hong Kong", "Prague", "Dublin", "Athens", "Seoul")  # fmt: skip
_PEOPLE = ("Alice", "Bob", "Carol", "David", "Emma", "Frank", "Grace", "Henry", "Anna", "Peter",
           "Maria", "John", "Mary", "Tom", "Lucy", "Sam", "Nova", "Max", "Julia", "Oscar",
           "TechDocAssistant", "HelpBot", "Ada Lovelace", "Alan Turing")  # fmt: skip
_CITIES_ZH = ("北京", "上海", "广州", "深圳", "杭州", "成都", "西安", "南京", "武汉", "东京",
              "巴黎", "伦敦", "重庆", "天津", "苏州", "青岛", "厦门", "长沙")  # fmt: skip
_HAN = "王李张刘陈杨黄赵周吴徐孙马朱胡林郭何高罗文明华建国平海天云山水月春秋江河石玉金龙凤安宁晓东西南北"
_THINGS = ("apple", "lamp", "chair", "river", "stone", "cloud", "paper", "garden", "bridge",
           "window", "coffee", "orange", "yellow", "silver", "music", "engine", "forest",
           "bottle", "letter", "number", "winter", "summer", "market", "doctor", "teacher",
           "station", "planet", "ocean", "island", "camera", "pencil", "basket", "rocket",
           "tiger", "horse", "rabbit", "monkey", "dragon", "castle", "village", "blue", "green",
           "quick", "brown", "fox", "jumps", "over", "lazy", "dog", "hello", "world", "alpha",
           "beta", "gamma", "delta", "one", "two", "three", "red", "small", "large", "data",
           "test", "user", "house", "water", "light", "night", "day", "tree", "bird", "fish",
           "banana", "cherry", "table", "phone", "error", "value", "simple", "secret", "report",
           "meeting", "project", "order", "service", "system", "north", "south", "east", "west",
           "bread", "cheese", "butter", "sugar", "salt", "snow", "rain", "wind", "storm", "ship",
           "road", "street", "school", "office", "friend", "family", "brother", "sister")  # fmt: skip


def _syllables() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Every onset-vowel-end combination, split into trained and held-out ones."""
    rng = Random(20240)
    every = [o + v + e for o in _ONSETS for v in _VOWELS for e in dict.fromkeys(_ENDS)]
    rng.shuffle(every)
    held = tuple(every[::_HOLD_EVERY])
    return tuple(s for s in every if s not in set(held)), held


@dataclass(frozen=True)
class WordPool:
    """The parts that names, nouns and values are made of.

    ``spelled`` is the share of made-up words that are random letters; the check has none, so
    that all its words come from the parts that were held out. ``known`` is the share of real
    words among the nouns that tools are about.
    """

    syllables: tuple[str, ...]
    verbs: tuple[str, ...]
    nouns: tuple[str, ...]
    nouns_zh: tuple[str, ...]
    spelled: float = 0.0
    known: float = 0.7

    def nonce(self, rng: Random) -> str:
        """A made-up lower-case word of one or two syllables, or of random letters."""
        if rng.random() < self.spelled:
            return "".join(rng.choice(_LETTERS) for _ in range(rng.randint(3, 7)))
        return "".join(rng.choice(self.syllables) for _ in range(rng.choice((1, 1, 2, 2))))

    def noun(self, rng: Random) -> str:
        """A real or made-up English noun."""
        return rng.choice(self.nouns) if rng.random() < self.known else self.nonce(rng)

    def verb(self, rng: Random) -> str:
        """What a tool does; at times spelled at random, so that rare pieces are copied too."""
        if self.spelled and rng.random() < self.spelled:
            return "".join(rng.choice(_LETTERS) for _ in range(rng.randint(4, 8)))
        return rng.choice(self.verbs)

    def tool_name(self, rng: Random, noun: str) -> str:
        """A function name; half of them carry the noun, the others are arbitrary."""
        style = rng.random()
        if style < 0.45 or not noun.isascii():
            parts = [self.nonce(rng) for _ in range(rng.choice((1, 2)))]
            if rng.random() < 0.4:
                parts = [self.verb(rng), *parts]
        elif style < 0.6:
            parts = [self.nonce(rng), *noun.split()]
        elif style < 0.7:
            parts = [*noun.split(), self.verb(rng)]
        else:
            parts = [self.verb(rng), *noun.split()]
        return join_name(rng, parts)


def join_name(rng: Random, parts: list[str]) -> str:
    """snake_case mostly, camelCase often, other styles now and then."""
    style = rng.random()
    if style < 0.6:
        return "_".join(parts)
    if style < 0.85:
        return parts[0] + "".join(part.capitalize() for part in parts[1:])
    if style < 0.92:
        return "".join(part.capitalize() for part in parts)
    return "-".join(parts)


def training_pool(spelled: float = 0.2) -> WordPool:
    """Parts for training."""
    return WordPool(_syllables()[0], _VERBS, _NOUNS, _NOUNS_ZH, spelled=spelled)


def held_out_pool() -> WordPool:
    """Parts for the check, none of them in the training pool."""
    return WordPool(_syllables()[1], _HELD_VERBS, _HELD_NOUNS, _HELD_NOUNS_ZH)


def new_names_pool() -> WordPool:
    """For tools about familiar things under new names: only the nouns were trained on."""
    return WordPool(_syllables()[1], _HELD_VERBS, _NOUNS, _NOUNS_ZH, known=1.0)


def parameter(rng: Random, pool: WordPool) -> str:
    """The name of a text parameter."""
    roll = rng.random()
    if roll < 0.88:
        return rng.choice(_PARAMS)
    return pool.nonce(rng) if roll < 0.95 else join_name(rng, [pool.nonce(rng), "id"])


def number_parameter(rng: Random) -> str:
    """The name of an integer parameter."""
    return rng.choice(_NUMBER_PARAMS)


def code(rng: Random) -> str:
    """An identifier such as ``KX-4821`` or ``a7f3c``."""
    digits = "".join(rng.choice(string.digits) for _ in range(rng.randint(2, 6)))
    letters = "".join(rng.choice(string.ascii_uppercase) for _ in range(rng.randint(1, 3)))
    style = rng.random()
    if style < 0.6:
        return f"{letters}-{digits}"
    if style < 0.8:
        return f"{letters}{digits}"
    return "".join(rng.choice("abcdef0123456789") for _ in range(rng.randint(4, 8)))


def name(rng: Random, pool: WordPool) -> str:
    """A capitalised made-up or real proper name, at times of two words."""
    roll = rng.random()
    if roll < 0.3:
        return rng.choice(_CITIES if roll < 0.2 else _PEOPLE)
    word = pool.nonce(rng).capitalize()
    return f"{word} {pool.nonce(rng).capitalize()}" if rng.random() < 0.2 else word


def name_zh(rng: Random) -> str:
    """A Chinese city or a random name of two or three characters."""
    if rng.random() < 0.4:
        return rng.choice(_CITIES_ZH)
    return "".join(rng.choice(_HAN) for _ in range(rng.randint(2, 3)))


def thing(rng: Random) -> str:
    """A common noun."""
    return rng.choice(_THINGS)


def date(rng: Random) -> str:
    """A date in ISO form."""
    return f"20{rng.randint(10, 39)}-{rng.randint(1, 12):02d}-{rng.randint(1, 28):02d}"


def email(rng: Random, pool: WordPool) -> str:
    """An e-mail address that nobody has."""
    end = rng.choice(("com", "org", "net", "example"))
    return f"{pool.nonce(rng)}{rng.choice(('', '.', '_'))}{pool.nonce(rng)}@{pool.nonce(rng)}.{end}"


def number(rng: Random) -> int:
    """A number with one to five digits."""
    return rng.randint(0, 10 ** rng.randint(1, 5))


def text_value(rng: Random, pool: WordPool) -> str:
    """A value for a text parameter: name, code, date, e-mail, phrase or Chinese name."""
    roll = rng.random()
    if roll < 0.58:
        return name(rng, pool)
    if roll < 0.73:
        return code(rng)
    if roll < 0.78:
        return date(rng)
    if roll < 0.82:
        return email(rng, pool)
    if roll < 0.89:
        return " ".join(any_word(rng, pool) for _ in range(rng.randint(2, 3)))
    return name_zh(rng) if roll < 0.94 else pool.nonce(rng)


def any_word(rng: Random, pool: WordPool) -> str:
    """A lower-case word, common or made up."""
    return thing(rng) if rng.random() < 0.5 else pool.nonce(rng)
