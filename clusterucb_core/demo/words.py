"""The vocabulary of the generated texts."""

NAMES = (
    "Ada", "Ben", "Clara", "David", "Elena", "Felix", "Grace", "Hugo", "Iris", "Jonas", "Kira", "Leo",
    "Mara", "Nils", "Olga", "Paul", "Rosa", "Simon", "Tara", "Viktor", "Wanda", "Yusuf", "Zoe", "Anton",
    "Bella",
)  # fmt: skip
THINGS = ("apples", "books", "coins", "eggs", "pens", "cards", "shells", "stamps", "plums", "buttons")
CITIES = (
    "Lyon",
    "Porto",
    "Graz",
    "Turin",
    "Ghent",
    "Leeds",
    "Malmo",
    "Basel",
    "Gdansk",
    "Split",
    "Cork",
    "Nice",
)
JOBS = ("baker", "nurse", "pilot", "tailor", "teacher", "farmer", "painter", "lawyer", "singer", "driver")
COLOURS = ("red", "blue", "green", "white", "black", "yellow", "brown", "grey")
PLAIN_WORDS = (
    "stone", "river", "candle", "garden", "window", "silver", "bottle", "forest", "ladder", "mirror",
    "pepper", "rocket", "saddle", "tunnel", "violin", "walnut", "anchor", "basket", "copper", "dragon",
    "engine", "feather", "guitar", "hammer", "island", "jacket", "kettle", "lemon", "market", "needle",
    "orange", "pencil", "quartz", "ribbon", "spider", "table", "umbrella", "velvet", "wagon", "acorn",
    "zebra", "branch", "cloud", "desert",
)  # fmt: skip
PASTIMES = (
    "reading",
    "hiking",
    "baking bread",
    "swimming",
    "playing chess",
    "painting",
    "gardening",
    "cycling",
)
CAPITALS = (
    ("France", "Paris"), ("Italy", "Rome"), ("Spain", "Madrid"), ("Portugal", "Lisbon"),
    ("Austria", "Vienna"), ("Poland", "Warsaw"), ("Norway", "Oslo"), ("Sweden", "Stockholm"),
    ("Finland", "Helsinki"), ("Denmark", "Copenhagen"), ("Greece", "Athens"), ("Ireland", "Dublin"),
    ("Hungary", "Budapest"), ("Egypt", "Cairo"), ("Kenya", "Nairobi"), ("Ghana", "Accra"),
    ("Japan", "Tokyo"), ("China", "Beijing"), ("Thailand", "Bangkok"), ("Vietnam", "Hanoi"),
    ("Canada", "Ottawa"), ("Mexico", "Mexico City"), ("Cuba", "Havana"), ("Peru", "Lima"),
    ("Chile", "Santiago"), ("Colombia", "Bogota"), ("Australia", "Canberra"), ("Iceland", "Reykjavik"),
    ("Belgium", "Brussels"), ("Romania", "Bucharest"), ("Croatia", "Zagreb"), ("Serbia", "Belgrade"),
    ("Morocco", "Rabat"), ("Ethiopia", "Addis Ababa"), ("Turkey", "Ankara"), ("Iran", "Tehran"),
    ("Iraq", "Baghdad"), ("Nepal", "Kathmandu"), ("Argentina", "Buenos Aires"), ("Uruguay", "Montevideo"),
)  # fmt: skip
