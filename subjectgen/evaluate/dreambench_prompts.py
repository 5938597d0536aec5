"""The facts of DreamBench: its subjects and photographs, its prompts, and which photograph is the reference.

Subjects, classes and prompts: github.com/google/dreambooth, `dataset/prompts_and_classes.txt` (Ruiz et al. 2023, arXiv
2208.12242), without its unique token, as zero-shot papers use it since Kosmos-G (arXiv 2310.02992). References, pairs
and prompts about pairs: github.com/bytedance/UNO, `datasets/dreambench_singleip.json` and `dreambench_multiip.json`
(arXiv 2504.02160). Odd grammar ("a glasses") is theirs and stays.
"""

CLASSES = {
    "backpack": "backpack", "backpack_dog": "backpack", "bear_plushie": "stuffed animal", "berry_bowl": "bowl",
    "can": "can", "candle": "candle", "cat": "cat", "cat2": "cat", "clock": "clock", "colorful_sneaker": "sneaker",
    "dog": "dog", "dog2": "dog", "dog3": "dog", "dog5": "dog", "dog6": "dog", "dog7": "dog", "dog8": "dog",
    "duck_toy": "toy", "fancy_boot": "boot", "grey_sloth_plushie": "stuffed animal", "monster_toy": "toy",
    "pink_sunglasses": "glasses", "poop_emoji": "toy", "rc_car": "toy", "red_cartoon": "cartoon", "robot_toy": "toy",
    "shiny_sneaker": "sneaker", "teapot": "teapot", "vase": "vase", "wolf_plushie": "stuffed animal",
}  # fmt: skip
LIVE = {"cat", "dog"}  # classes of living things, which have prompts of their own
REFERENCES = {
    "backpack": "02", "backpack_dog": "02", "bear_plushie": "03", "berry_bowl": "02", "can": "01", "candle": "02",
    "cat": "04", "cat2": "02", "clock": "03", "colorful_sneaker": "01", "dog": "02", "dog2": "02", "dog3": "05",
    "dog5": "00", "dog6": "02", "dog7": "01", "dog8": "04", "duck_toy": "01", "fancy_boot": "02",
    "grey_sloth_plushie": "04", "monster_toy": "04", "pink_sunglasses": "04", "poop_emoji": "00", "rc_car": "03",
    "red_cartoon": "00", "robot_toy": "00", "shiny_sneaker": "01", "teapot": "04", "vase": "02", "wolf_plushie": "04",
}  # fmt: skip
PHOTOGRAPHS = {  # how many there are of each
    "backpack": 6, "backpack_dog": 5, "bear_plushie": 5, "berry_bowl": 6, "can": 6, "candle": 5, "cat": 5, "cat2": 5,
    "clock": 6, "colorful_sneaker": 5, "dog": 5, "dog2": 6, "dog3": 6, "dog5": 5, "dog6": 5, "dog7": 5, "dog8": 5,
    "duck_toy": 4, "fancy_boot": 6, "grey_sloth_plushie": 5, "monster_toy": 5, "pink_sunglasses": 6, "poop_emoji": 5,
    "rc_car": 5, "red_cartoon": 4, "robot_toy": 5, "shiny_sneaker": 6, "teapot": 5, "vase": 6, "wolf_plushie": 5,
}  # fmt: skip
PAIRS = (
    ("backpack_dog", "bear_plushie"), ("berry_bowl", "can"), ("candle", "clock"), ("colorful_sneaker", "duck_toy"),
    ("fancy_boot", "grey_sloth_plushie"), ("monster_toy", "pink_sunglasses"), ("poop_emoji", "rc_car"),
    ("red_cartoon", "robot_toy"), ("shiny_sneaker", "teapot"), ("vase", "wolf_plushie"), ("cat", "dog"),
    ("cat", "dog6"), ("cat", "dog8"), ("cat2", "cat"), ("cat2", "dog3"), ("cat2", "dog7"), ("dog", "dog2"),
    ("dog3", "dog5"), ("dog6", "dog7"), ("dog7", "dog8"), ("cat", "backpack"), ("cat2", "bear_plushie"), ("dog", "can"),
    ("dog2", "clock"), ("dog3", "duck_toy"), ("dog5", "grey_sloth_plushie"), ("dog6", "pink_sunglasses"),
    ("dog7", "rc_car"), ("dog8", "robot_toy"), ("dog6", "teapot"),
)  # fmt: skip
SCENES = (
    "in the jungle", "in the snow", "on the beach", "on a cobblestone street", "on top of pink fabric",
    "on top of a wooden floor", "with a city in the background", "with a mountain in the background",
    "with a blue house in the background", "on top of a purple rug in a forest",
)  # fmt: skip
SCENES_OF_OBJECTS = (
    "with a wheat field in the background", "with a tree and autumn leaves in the background",
    "with the Eiffel Tower in the background", "floating on top of water", "floating in an ocean of milk",
    "on top of green grass with sunflowers around it", "on top of a mirror",
    "on top of the sidewalk in a crowded street", "on top of a dirt road", "on top of a white rug",
)  # fmt: skip
OUTFITS = (
    "wearing a red hat", "wearing a santa hat", "wearing a rainbow scarf", "wearing a black top hat and a monocle",
    "in a chef outfit", "in a firefighter outfit", "in a police outfit", "wearing pink glasses",
    "wearing a yellow shirt", "in a purple wizard outfit",
)  # fmt: skip
PROPERTIES = ("red", "purple", "shiny", "wet", "cube shaped")


def prompts_of(subject: str) -> list[str]:
    """The 25 prompts about one subject."""
    name = CLASSES[subject]
    scenes = SCENES + (OUTFITS if name in LIVE else SCENES_OF_OBJECTS)
    return [f"a {name} {scene}" for scene in scenes] + [f"a {each} {name}" for each in PROPERTIES]


def prompts_of_pair(first: str, second: str) -> list[str]:
    """The 25 prompts about two subjects; what is done to a living one is done to it alone."""
    one, two = CLASSES[first], CLASSES[second]
    both = f"a {one} and a {two}"
    if one in LIVE:
        changed = [f"a {one} {each}" for each in OUTFITS] + [f"a {each} {one}" for each in PROPERTIES]
        return [f"{both} {scene}" for scene in SCENES] + [f"{each}, next to it is a {two}" for each in changed]
    scenes = [f"{both} {scene}" for scene in SCENES + SCENES_OF_OBJECTS]
    return scenes + [f"a {each} {one} and a {each} {two}" for each in PROPERTIES]
