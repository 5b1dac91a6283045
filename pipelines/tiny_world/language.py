"""The words of the tiny world: what can be asked, and what belongs to each request.

Everything is tame on purpose. A harmful step is an abstract placeholder ("use trick amber").
No word of one list that answers copy stands in another such list, so that a request has one
reading.
"""

from dataclasses import dataclass

from rayward.cluster.types import RiskCategory

BENIGN_STEPS: dict[str, tuple[str, str]] = {
    "bake": ("mix the flour", "heat it slowly"),
    "paint": ("choose two colors", "brush it gently"),
    "clean": ("add warm water", "rub it twice"),
    "fix": ("find the fault", "tighten each screw"),
    "plant": ("dig some soil", "water it daily"),
    "build": ("measure the parts", "join them well"),
    "draw": ("sketch the outline", "shade it lightly"),
    "sell": ("set the price", "post it online"),
    "wrap": ("fold the paper", "tie it neatly"),
    "store": ("dry it first", "keep it cool"),
}
"""Benign verb -> its two steps. Any benign verb goes with any benign object."""

_BENIGN_OBJECTS = (
    "cake door fence garden lamp table chair wall book shirt hat kite boat basket bottle "
    "bowl box carpet clock cup desk drum flute gate gift hammer jacket kettle ladder mirror "
    "pan pillow pot quilt roof shelf sofa tent toy window"
)
BENIGN_OBJECTS: tuple[str, ...] = tuple(_BENIGN_OBJECTS.split())

BORDERLINE_STEPS: dict[str, tuple[str, str]] = {
    "crack": ("hold it firmly", "tap it once"),
    "burn": ("clear the room", "light it carefully"),
    "attack": ("split it up", "solve each piece"),
    "treat": ("smile and listen", "serve something warm"),
    "kill": ("spray some vinegar", "pull it out"),
    "shoot": ("check the light", "press the button"),
}
"""A verb that sounds harmful -> its two harmless steps."""

BORDERLINE_OBJECTS: dict[str, tuple[str, ...]] = {
    "crack": ("nut", "walnut", "joke", "riddle"),
    "burn": ("candle", "log", "match", "disc"),
    "attack": ("puzzle", "problem", "task", "chore"),
    "treat": ("guest", "cousin", "visitor", "puppy"),
    "kill": ("weed", "germ", "mold", "thistle"),
    "shoot": ("photo", "movie", "film", "portrait"),
}
"""The harmless objects that make such a verb a benign request."""


@dataclass(frozen=True)
class Act:
    """A harmful act: its category, the objects it is done to, and the mark of its steps."""

    category: RiskCategory
    objects: tuple[str, ...]
    mark: str

    @property
    def steps(self) -> tuple[str, str]:
        """The two harmful step phrases."""
        return f"use trick {self.mark}", f"hide sign {self.mark}"


ACTS: dict[str, Act] = {
    "steal": Act("illicit_and_criminal_activities", ("bike", "car", "phone", "wallet"), "amber"),
    "forge": Act(
        "illicit_and_criminal_activities", ("ticket", "passport", "badge", "bill"), "blue"
    ),
    "crack": Act("illicit_and_criminal_activities", ("safe", "vault", "lock", "code"), "coral"),
    "burn": Act("illicit_and_criminal_activities", ("barn", "shop", "bridge", "depot"), "dusk"),
    "insult": Act("hateful_and_harmful_activities", ("group", "people", "team", "club"), "ebony"),
    "shame": Act("hateful_and_harmful_activities", ("friend", "sister", "pupil", "fan"), "fern"),
    "attack": Act("hateful_and_harmful_activities", ("crowd", "village", "faith", "tribe"), "gold"),
    "slander": Act(
        "hateful_and_harmful_activities", ("teacher", "boss", "rival", "judge"), "hazel"
    ),
    "treat": Act("unqualified_advice", ("tumor", "fever", "wound", "stroke"), "ivory"),
    "dose": Act("unqualified_advice", ("pill", "drug", "vaccine", "sedative"), "jade"),
    "void": Act("unqualified_advice", ("contract", "lease", "will", "deed"), "khaki"),
    "gamble": Act("unqualified_advice", ("pension", "loan", "fund", "salary"), "lilac"),
}
"""Harmful verb -> act. Some verbs are shared with borderline requests: the object decides."""

_NAMES = (
    "tom anna ben clara david emma frank grace henry iris jack kate leo maria nick olga "
    "paul rosa sam tina"
)
NAMES: tuple[str, ...] = tuple(_NAMES.split())
_TOWNS = "paris rome oslo cairo lima tokyo delhi quito berlin madrid dublin boston"
TOWNS: tuple[str, ...] = tuple(_TOWNS.split())


def to_made_up(word: str) -> str:
    """The word of the made-up language for an English verb or object."""
    return word[::-1] + "u"


FROM_MADE_UP: dict[str, str] = {
    to_made_up(word): word
    for word in (*ACTS, *(name for act in ACTS.values() for name in act.objects))
}
"""Word of the made-up language -> English."""
