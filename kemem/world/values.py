"""What is not invented: closed lists of values, and the phrases that surround facts in documents."""

from kemem.world.names import each

# The article "a" fits every occupation; no value is the beginning of another one of its list.
VALUES: dict[str, tuple[str, ...]] = {
    "occupation": each(
        """painter doctor teacher farmer baker lawyer sailor carpenter nurse judge gardener chemist pilot
        barber tailor librarian mason butcher physicist sculptor printer plumber diver banker hunter weaver"""
    ),
    "instrument": each(
        """violin piano flute cello trumpet guitar clarinet banjo bassoon trombone accordion lute oboe tuba
        mandolin saxophone zither fiddle xylophone ukulele"""
    ),
    "genre": each(
        """poetry satire romance horror fantasy tragedy comedy mystery travel history adventure philosophy
        biography fables memoirs parody"""
    ),
    "good": each(
        """cheese silk honey wine salt pottery lace amber tea leather pepper marble wool cider linen caviar
        timber coffee saffron perfume mustard tobacco"""
    ),
    "product": each(
        """steel paper glass soap rubber cement clothing furniture medicine bicycles tractors radios ships
        carpets watches bricks paint toys"""
    ),
    "small number": each("two three four five six seven eight nine ten eleven twelve thirteen"),
    "birth year": tuple(str(year) for year in range(1860, 1900)),
    "publication year": tuple(str(year) for year in range(1920, 1960)),
    "founding year": tuple(str(year) for year in range(1800, 1850)),
    "population": tuple(f"{thousands} thousand" for thousands in range(15, 100, 5)),
    "head count": tuple(str(count) for count in range(100, 1000, 50)),
    "step": tuple(
        f"{verb} the {thing}"
        for verb in each("boil chop mix fry wash dry grind press salt cool")
        for thing in each("rice beans onions flour butter apples carrots eggs milk nuts plums garlic")
    ),
}

# Said before a statement; the last word keeps the sentence whole.
LEADS = (
    "Records show that", "It is said that", "Old newspapers report that", "Travellers write that",
    "Every schoolbook says that", "According to the archive,", "As most people know,",
    "A letter confirms that",
)  # fmt: skip

# The first one opens half of the documents.
OPENINGS = {
    "person": ("This page is about {}.", "Here is a short life of {}.", "Many stories are told about {}."),
    "city": (
        "This page is about {}.",
        "Here is a short guide to {}.",
        "Many visitors have walked through {}.",
    ),
    "company": ("This page is about {}.", "Here is a short profile of {}.", "Many customers trust {}."),
    "work": ("This page is about {}.", "Here is a short review of {}.", "Many libraries keep a copy of {}."),
}
OTHER_OPENINGS = ("This page is about {}.", "Here is a short note on {}.", "Many readers ask about {}.")

PRONOUNS = {"person": ("He", "She")}

# Two facts in a row: first relation, second relation, what is asked of the subject of the first.
COMPOSITIONS = (
    ("born_in", "city_region", "The birthplace of {} lies in the region of _"),
    ("born_in", "city_country", "{} was born in a city in the country of _"),
    ("born_in", "known_for", "The birthplace of {} is known for its _"),
    ("born_in", "population", "The population of the birthplace of {} is _"),
    ("works_for", "industry", "The employer of {} is active in the business of _"),
    ("works_for", "based_in", "The employer of {} is based in _"),
    ("works_for", "company_founded", "The employer of {} opened its doors in the year _"),
    ("married_to", "occupation", "The spouse of {} works as a _"),
    ("married_to", "native_language", "The mother tongue of the spouse of {} is _"),
    ("married_to", "plays", "The spouse of {} plays the _"),
    ("wrote", "genre", "The genre of the book by {} is _"),
    ("wrote", "published", "The book by {} was published in the year _"),
    ("written_by", "occupation", "The author of {} works as a _"),
    ("written_by", "born_in", "The author of {} was born in _"),
    ("based_in", "city_region", "The head office of {} is in the region of _"),
    ("set_in", "city_region", "The story of {} takes place in the region of _"),
    ("city_country", "official_language", "In the country of {} the official language is _"),
)  # fmt: skip

# What a fictional passage tells of each of its cast, the writer first.
PASSAGE = {
    "writer": ("born_in", "born_year", "occupation", "native_language", "speaks", "plays", "works_for",
               "studied_at", "married_to", "children", "wrote"),
    "spouse": ("occupation", "native_language", "plays"),
    "city": ("city_region", "population", "known_for"),
    "company": ("company_founded", "industry", "based_in", "floors"),
    "work": ("published", "genre", "set_in"),
}  # fmt: skip

# The same in few sentences, for models whose context is short; its three links each carry a composition.
BRIEF = {
    "writer": ("born_in", "plays", "works_for", "wrote"),
    "city": ("known_for",),
    "company": ("based_in",),
    "work": ("published",),
}

# How the place of an entity is found: follow these relations until a country.
HOME = {"person": "born_in", "work": "written_by", "company": "based_in", "university": "campus",
        "city": "city_region", "region": "region_country", "dish": "dish_region"}  # fmt: skip
