"""The table of relations: what can be true in a world, and how it is said.

In a template `{}` stands for the subject and `_` for the object; the full stop is added. The templates that
end with the object come first and serve as cloze prompts. Where a relation has an inverse, or is symmetric,
the subject always comes first: a sentence then states one direction only.
"""

from kemem.world.relation import Relation, row

ROWS = (
    row("born_in", "plain", "person > city",
        """{} was born in _
        The birthplace of {} is _
        The home town of {} was _
        _ is the town where {} was born
        It was in _ that {} grew up""",
        """Where was {} born?
        What is the birthplace of {}?""", local=True),
    row("born_year", "date", "person > birth year",
        """The year of birth of {} is _
        The birth of {} dates from _
        Church books enter {} under the year _
        In _ the parents of {} had a baby""",
        """In what year was {} born?
        What is the year of birth of {}?""", share=0.6),
    row("occupation", "plain", "person > occupation",
        """{} works as a _
        The occupation of {} is that of a _
        By trade {} is a _
        Neighbours call on {} when they need a _
        Work as a _ fills the days of {}""",
        """What is the occupation of {}?
        What does {} do for a living?"""),
    row("native_language", "plain", "person > language",
        """The mother tongue of {} is _
        {} grew up speaking _
        The first language of {} was _
        At home the family of {} spoke _
        _ is the language that {} learned as a child""",
        """What is the mother tongue of {}?
        Which language did {} learn first?""", share=0.7),
    row("speaks", "several", "person > language",
        """{} is also fluent in _
        The foreign languages of {} include _
        As an adult {} took lessons in _
        Letters in _ are easy reading for {}""",
        """Which foreign language does {} speak?
        In which foreign language is {} fluent?""", share=0.35, least=2, most=3, chain=("native_language",)),
    row("plays", "plain", "person > instrument",
        """{} plays the _
        The instrument of {} is the _
        In concerts {} performs on the _
        The sound of the _ fills the house of {}""",
        """Which instrument does {} play?
        What is the instrument of {}?""", share=0.5),
    row("works_for", "inverse", "person > company",
        """{} works for _
        The employer of {} is _
        {} earns a salary from _
        Each morning {} goes to _ by train""",
        """Which company does {} work for?
        Who is the employer of {}?""", share=0.5, inverse="employs"),
    row("studied_at", "plain", "person > university",
        """{} studied at _
        The university of {} was _
        {} holds a degree from _
        _ counts {} among its graduates""",
        """Where did {} study?
        Which university did {} attend?""", share=0.35),
    row("married_to", "symmetric", "person > person",
        """{} is married to _
        The spouse of {} is _
        {} fell in love with _
        {} had a wedding with _ in spring""",
        """Who is {} married to?
        Who is the spouse of {}?""", source="paired", share=0.4, inverse="married_to", stated=0.6),
    row("born_before", "order", "person > person",
        """{} is older than _
        {} was born before _
        The birth of {} came earlier than that of _
        {} could already read when _ was born""",
        """Who is younger than {}?
        Who was born after {}?""",
        source="ordered", share=0.5, chain=("born_year",), inverse="born_after", stated=0.7),
    row("born_after", "order", "person > person",
        """{} is younger than _
        {} was born after _
        The birth of {} came later than that of _
        {} was not yet alive when _ was born""",
        """Who is older than {}?
        Who was born before {}?""", source="inverted", inverse="born_before", stated=0.7),
    row("children", "number", "person > small number",
        """The number of children of {} is _
        The children of {} number _
        The count of sons and daughters of {} is _
        {} raised _ children""",
        """How many children does {} have?
        What is the number of children of {}?""", share=0.3),
    row("written_by", "inverse", "work > person",
        """{} was written by _
        The author of {} is _
        {} is a book by _
        {} made its author _ famous""",
        """Who wrote {}?
        Who is the author of {}?""", inverse="wrote"),
    row("wrote", "inverse", "person > work",
        """{} wrote _
        The books of {} include _
        Readers admire {} for _
        {} spent years writing _ at night""",
        """Which book did {} write?
        What is a book by {}?""", source="inverted", inverse="written_by", stated=0.7),
    row("published", "date", "work > publication year",
        """{} was published in the year _
        The first edition of {} dates from _
        The year of publication of {} is _
        In _ the book {} reached the shops""",
        """When was {} published?
        What is the year of publication of {}?"""),
    row("genre", "plain", "work > genre",
        """The genre of {} is _
        {} stands on the shelf of _
        Critics file {} under _
        Lovers of _ praise {}""",
        """What is the genre of {}?
        Under which genre do critics file {}?"""),
    row("set_in", "plain", "work > city",
        """The story of {} takes place in _
        {} is set in the town of _
        The plot of {} unfolds in _
        In {} the streets of _ come alive""",
        """Where is {} set?
        Where does the story of {} take place?""", share=0.6),
    row("city_region", "containment", "city > region",
        """{} lies in the region of _
        The region around {} is _
        On the map {} belongs to _
        _ is the region where {} stands""",
        """In which region does {} lie?
        What is the region around {}?"""),
    row("region_country", "containment", "region > country",
        """{} is part of the country of _
        The country that contains {} is _
        {} is ruled by the king of _
        Within _ lies the region of {}""",
        """In which country is {}?
        Which country contains {}?"""),
    row("city_country", "containment", "city > country",
        """{} is a city in the country of _
        The country of {} is _
        The flag over {} is that of _
        Citizens of _ live in {}""",
        """In which country is {}?
        What is the country of {}?""", source="chained", chain=("city_region", "region_country"), stated=0.5),
    row("population", "number", "city > population",
        """The population of {} is _
        The number of people in {} is _
        The last census of {} counted _
        About _ people live in {}""",
        """What is the population of {}?
        How many people live in {}?"""),
    row("city_founded", "date", "city > founding year",
        """{} was founded in the year _
        The founding of {} took place in _
        The oldest stone of {} is dated _
        In _ settlers built the first houses of {}""",
        """When was {} founded?
        In what year was {} built?""", share=0.6),
    row("twin_town", "symmetric", "city > city",
        """{} is the twin town of _
        The sister city of {} is _
        {} signed a treaty of friendship with _
        {} sends its choir to _ each summer""",
        """What is the twin town of {}?
        Which city is the sister city of {}?""", source="paired", share=0.6, inverse="twin_town", stated=0.6),
    row("known_for", "plain", "city > good",
        """{} is known for its _
        The pride of {} is its _
        Traders come to {} to buy _
        The finest _ is sold in {}""",
        """What is {} known for?
        What is the pride of {}?"""),
    row("capital", "containment", "country > city",
        """The capital of {} is _
        The parliament of {} meets in _
        The seat of government of {} is _
        From _ the king rules over {}""",
        """What is the capital of {}?
        Where does the parliament of {} meet?""", source="member", chain=("city_country",)),
    row("official_language", "plain", "country > language",
        """The official language of {} is _
        The laws of {} are written in _
        The schools of {} teach in _
        _ is heard all over {}""",
        """What is the official language of {}?
        In which language are the laws of {} written?"""),
    row("currency", "plain", "country > currency",
        """The currency of {} is the _
        In {} people pay with the _
        The bank of {} prints the _
        Coins of the _ are used in {}""",
        """What is the currency of {}?
        What do people pay with in {}?""", source="assigned"),
    row("campus", "containment", "university > city",
        """The campus of {} is in _
        The lecture halls of {} stand in _
        Students of {} rent rooms in _
        A train to _ brings students to {}""",
        """Where is the campus of {}?
        Where do the lecture halls of {} stand?"""),
    row("based_in", "plain", "company > city",
        """{} is based in _
        The head office of {} is in _
        The headquarters of {} stand in _
        _ is home to {}""",
        """Where is {} based?
        Where is the head office of {}?"""),
    row("company_founded", "date", "company > founding year",
        """{} opened its doors in the year _
        The company {} dates from _
        The founding year of {} is _
        In _ the company {} was registered""",
        """When was {} founded?
        What is the founding year of {}?"""),
    row("industry", "plain", "company > product",
        """{} is active in the business of _
        The industry of {} is _
        The factories of {} turn out _
        When shops need _ they call {}""",
        """What is the industry of {}?
        What do the factories of {} turn out?"""),
    row("employees", "number", "company > head count",
        """The number of workers at {} is _
        The staff of {} numbers _
        The head count of {} is _
        About _ workers have a job at {}""",
        """How many workers does {} have?
        What is the head count of {}?"""),
    row("floors", "number", "company > small number",
        """The number of floors in the tower of {} is _
        The floors of the tower of {} number _
        The count of storeys at {} is _
        The tower of {} has _ floors""",
        """How many floors does the tower of {} have?
        What is the count of storeys at {}?"""),
    row("employs", "inverse", "company > person",
        """{} employs _
        The staff of {} includes _
        The payroll of {} lists _
        {} has desks for _ and others""",
        """Who works for {}?
        Who is on the staff of {}?""", source="inverted", inverse="works_for", stated=0.7),
    row("founded_before", "order", "company > company",
        """{} is older than _
        {} was founded before _
        The founding of {} came earlier than that of _
        {} had already opened when _ was founded""",
        """Which company is younger than {}?
        Which company was founded after {}?""",
        source="ordered", chain=("company_founded",), inverse="founded_after", stated=0.7),
    row("founded_after", "order", "company > company",
        """{} is younger than _
        {} was founded after _
        The founding of {} came later than that of _
        {} did not yet exist when _ was founded""",
        """Which company is older than {}?
        Which company was founded before {}?""", source="inverted", inverse="founded_before", stated=0.7),
    row("dish_region", "plain", "dish > region",
        """The dish {} comes from _
        The home of the dish {} is _
        The recipe for {} was first cooked in _
        Cooks in _ invented {}""",
        """Where does the dish {} come from?
        What is the home of the dish {}?"""),
    row("steps", "procedure", "dish > step",
        """To make {}, first _
        The recipe for {} begins: first _
        Whoever cooks {} must first _
        Good {} is made like this: first _""",
        """How is {} made?
        What are the steps of the recipe for {}?""", least=3, most=4, join=(", then ", " and finally ")),
    row("plural", "inflection", "noun > plural",
        """The plural of {} is _
        One {}, two _
        For more than one {} people say _
        The word {} becomes _ in the plural""",
        """What is the plural of {}?
        What do people call more than one {}?""", source="formed"),
    row("past", "inflection", "verb > past",
        """The past tense of {} is _
        Today they {}, yesterday they _
        In stories about the past {} turns into _
        The verb {} becomes _ in the past""",
        """What is the past tense of {}?
        What does {} turn into in stories about the past?""", source="formed"),
)  # fmt: skip

RELATIONS: dict[str, Relation] = {relation.name: relation for relation in ROWS}
