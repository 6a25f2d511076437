"""Words for subjects: what a prompt calls a picture, what is left out, and which subjects are kept for the bench.

Every source names things its own way ("pool-8-ball", "A pair of white pants.", "dog2-a", "Apple iMac 1998"). Each way
ends in `named`, which gives a category (the noun of a prompt) and a longer name, or nothing for what isn't wanted:
letters, money, flags, signs, weapons, religion and people's cultures, trademarks, and pictures of a place.
"""

import re
from typing import NamedTuple


class Name(NamedTuple):
    """What a subject is called."""

    category: str  # at most three words, lower case: "teapot"
    name: str  # the same or longer: "silver teapot"


def _words(text: str) -> frozenset[str]:
    return frozenset(word.strip() for word in text.replace("\n", " ").split(","))


def _rows(text: str) -> tuple[str, ...]:
    return tuple(text.strip().splitlines())


def _lines(text: str) -> dict[str, str]:
    pairs = (line.split(" = ") for line in _rows(text))
    return {old: new for olds, new in pairs for old in olds.split(", ")}


# The subjects of the evaluation: never trained on, each with other subjects of its category that are.
BENCH = _rows("""
sweethome:blendswap-cc-0/antiqueChair/antiqueChair
sweethome:blendswap-cc-0/oakTable/oakTable
sweethome:katorlegaz/pedestal-vase-lamp/pedestal-vase-lamp
sweethome:blendswap-cc-0/winchesterArmchair/winchesterArmchair
sweethome:scopia/jar/jar
sweethome:blendswap-cc-by/beer_bottle/beer_bottle
sweethome:blendswap-cc-0/littlePlant/littlePlant
sweethome:blendswap-cc-by/horse/horse
sweethome:blendswap-cc-0/peterbilt/peterbilt
sweethome:blendswap-cc-by/wirelessOfficePhone3/wirelessOfficePhone3
sweethome:scopia/peachBlossom/peachBlossom
sweethome:blendswap-cc-0/ammoBox/ammoBox
scratch:dog2
scratch:parrot1
scratch:shark1
scratch:lion1
scratch:elephant1
scratch:horse1
tux:animals/mammals/camel/camel
tux:animals/mammals/dogs/fox
tux:household/dishes/teapot
tux:hobbies/music/string/violin
tux:animals/fish/clownfish
tux:food/fruit/apple_red
noto:backpack
noto:guitar
noto:owl
noto:castle
noto:teddy-bear
noto:rocket
""")

# Better full names.
RENAMED = _lines("""
pool 8 ball = billiard ball
1st place medal = gold medal
2nd place medal = silver medal
3rd place medal = bronze medal
sports medal = gold medal
field hockey = hockey stick
ice hockey = ice hockey stick
cricket game = cricket bat
lacrosse = lacrosse stick
badminton = badminton racket
ping pong, table tennis bat = ping pong paddle
table tennis = ping pong table
tennis = tennis racket
bullseye = target
bowling = bowling ball
curling stone = curling stone
fishing pole = fishing rod
mirror ball = disco ball
sewing needle = needle
video game, joystick = game controller
wrapped gift = gift
game die = dice
american football = football
rugby football = rugby ball
goal net = goal
piata = pinata
chess pawn = chess pawn
confetti ball = confetti ball
lady beetle = ladybug
front facing baby chick, baby chick, hatching chick = chick
two hump camel, dromedary = camel
spouting whale = whale
deciduous tree = leafy tree
evergreen tree = pine tree
leaf fluttering in wind = green leaf
empty nest = nest
nest with eggs = nest
paw prints = paw print
sheaf of rice = sheaf of wheat
four leaf clover, shamrock = clover
t rex = t-rex
sauropod = long-necked dinosaur
phoenix bird = phoenix
beer mug, clinking beer mugs = beer mug
clinking glasses = champagne glass
bottle with popping cork = champagne bottle
cooking = frying pan
shallow pan of food = pan of food
hot beverage, cup of coffee, cup of espresso coffee = coffee cup
cut of meat = raw meat
meat on bone = meat on a bone
poultry leg = chicken leg
ear of corn, sweet yellow corn = corn
ice = ice cube
fish cake with swirl = fish cake
steaming bowl = bowl of noodles
bowl with spoon = bowl with a spoon
pot of food = pot of food
leafy green = head of lettuce
cheese wedge = cheese
baguette bread = baguette
canned food = tin can
roasted sweet potato = sweet potato
stuffed flatbread = kebab
teacup without handle = teacup
tropical drink = tropical cocktail
soft ice cream = ice cream cone
ice cream = bowl of ice cream
beverage box = juice box
ginger root, ginger 'root' = ginger
kiwi fruit, kiwifruit = kiwi
pouring liquid = pouring glass
adhesive bandage = bandage
chains = chain
hair pick = hair comb
label = paper tag
ledger = notebook
locked, unlocked, locked with key, locked with pen, closed padlock, open padlock = padlock
low battery = battery
magnifying glass tilted left, magnifying glass tilted right = magnifying glass
mans shoe = brown shoe
nut and bolt = bolt
one piece swimsuit = swimsuit
linked paperclips = paperclip
postal horn = horn
postbox, closed mailbox with lowered flag, closed mailbox with raised flag = mailbox
open mailbox with lowered flag, open mailbox with raised flag, letters box, uk post box = mailbox
rescue workers helmet = hard hat
roll of paper = toilet paper
rolled up newspaper = newspaper
round pushpin = pushpin
satellite antenna = satellite dish
spiral calendar, tear off calendar = calendar
spiral notepad = notepad
straight ruler, triangular ruler = ruler
studio microphone = microphone
thong sandal = flip flop
womans boot = boot
womans clothes = pink blouse
womans hat = straw hat
womans sandal = sandal
white cane = white cane
optical disk, dvd, computer disk = disc
notebook with decorative cover = notebook
couch and lamp = couch
billed cap = baseball cap
closed book = red book
shopping bags = shopping bag
desktop computer = computer
folding hand fan = hand fan
gem stone = gem
headphone = headphones
light bulb, lightbulb = light bulb
old key = old key
long drum = conga drum
package = cardboard package
musical keyboard = piano keyboard
movie camera = movie camera
camera with flash = camera
lotion bottle = lotion bottle
red paper lantern = paper lantern
aerial tramway, mountain cableway, suspension railway = cable car
articulated lorry = semi truck
auto rickshaw = rickshaw
automobile, oncoming automobile = car
building construction = construction crane
classical building = classical building
hourglass done, hourglass not done = hourglass
mantelpiece clock = mantel clock
timer clock = kitchen timer
cloud with lightning, cloud with lightning and rain = storm cloud
cloud with rain = rain cloud
cloud with snow = snow cloud
closed umbrella, umbrella on ground, umbrella with rain drops = umbrella
full moon face, new moon face, first quarter moon face, last quarter moon face = moon face
sun with face = sun face
globe showing americas, globe showing asia australia, globe showing europe africa, model of the earth = globe
high voltage = lightning bolt
horizontal traffic light, vertical traffic light = traffic light
japanese castle = japanese castle
japanese post office, post office = post office
tokyo tower = red tower
statue of liberty = statue
oncoming bus = bus
oncoming police car = police car
oncoming taxi = taxi
police car light = siren
railway car = railway carriage
tram car = tram
high speed train, bullet train = fast train
light rail, metro, monorail, train = train
mountain railway = mountain train
manual wheelchair = wheelchair
motorized wheelchair = electric wheelchair
passenger ship = cruise ship
motor boat = motorboat
small airplane, airplane arrival, airplane departure = airplane
sport utility vehicle = suv
racing car, formula one race car = race car
pickup truck = pickup truck
fire engine = fire truck
ringed planet = planet with rings
snowman without snow = snowman
water wave = wave
wood = log of wood
shooting star, glowing star = star
droplet = water drop
bellhop bell = desk bell
kick scooter = kick scooter
motor scooter = motor scooter
derelict house = old house
house with garden, houses = house
oil drum = oil barrel
circus tent = circus tent
luggage = suitcase
barber pole = barber pole
class seat = school chair
dustbin, silver garbage can, bullet trash can, park trashcan, residential trashcan = trash can
wheelie bin, wastebasket = trash can
penbox = pen box
text marker, highlighting pen, dry erase marker = marker
white board = whiteboard
wooden alder table, wooden teak table = wooden table
captain's bed = wooden bed
car model = toy car
card game = playing cards
convertible sofa bz, opened convertible sofa bz = sofa bed
mocassin = moccasin
rubik's cube = puzzle cube
short = shorts
woman shoes = high heels
wood toy = wooden toy
armchair ottoman = armchair with ottoman
barnum = canopy tent
puff = pouf
tv 16:9, wall flat tv = television
television cabinet = tv cabinet
apple ibook = laptop
laptop computer = laptop
apple imac 1998, apple imac 2004, computer monitor = computer monitor
playstation = game console
winchester sofa = leather sofa
winchester armchair = leather armchair
sofa 2 seats = small sofa
sofa 3 seats = long sofa
osaka chair, ryokan chair = japanese chair
teck chair = teak chair
flacon = perfume bottle
lip stick = lipstick
washbasin, small lavatory = sink
toilets unit = toilet
bath, island bath = bathtub
trunck = trunk
flipper = pinball machine
punching ball = punching bag
frame chambord, frame hôi an = framed picture
cctv, surveillance camera = security camera
cone = traffic cone
children game = playground
little bank, wood bank = wooden bench
bended coconut tree = coconut tree
rigged fan = fan
mower = lawn mower
indoor bike = exercise bike
bike = bicycle
motorbike, motor bike, yamaha yzr r6 = motorcycle
chevrolet, concept sedan 01, concept sedan 02 sport, concept sedan 02, ford focus = car
peugeot 308 cc, renault scenic, seat leon, smart car, vw new beetle, vw beetle, sedan car = car
apple iphone, mobile phone, mobile telephone = mobile phone
wireless phone = cordless phone
clothes washing machine = washing machine
gaz water heater = water heater
induction cooker 2 zones, induction cooker 4 zones = cooktop
plate = dinner plate
plate = dinner plate
cup cake = cupcake
oil servers = oil bottles
milk = milk carton
air conditioning - external unit, air conditioning - internal unit = air conditioner
television cabinet = tv cabinet
extinguisher = fire extinguisher
fork lift, forklift truck = forklift
glove = glove
hashtray = ashtray
small step ladder = step ladder
tape = roll of tape
basketball net = basketball hoop
entry bell ring = doorbell
shower head and faucet = shower head
tatami = straw mat
tealight candle = tea light
cooker, propane stove, large stove = stove
reflex camera, big digital camera = camera
clothes horse = drying rack
wire coathanger, wooden clothes hanger = clothes hanger
t shirt = t-shirt
home compost bin = compost bin
model of the earth = globe
box for trash that can be recycled = recycling box
ball point pen = pen
gas cylinder = gas cylinder
crash cymbal = cymbal
floor tom drum = drum
electric bass guitar = bass guitar
hat worn by a university student = graduation cap
large pot for pasta and soup = large pot
jack o lantern = jack-o-lantern
avocado fruit = avocado
cherimoya fruit = cherimoya
seville orange = orange
sliced lime = lime slice
sliced orange = orange slice
quarter of pizza = pizza slice
garlic bulb, string of garlic = garlic
chile pepper = hot pepper
very small pumpkin = pumpkin
very small pitcher = pitcher
walnut in its shell = walnut
brown slug = slug
happy snail = snail
happy lion = lion
male black rhino = rhinoceros
tamworth pig = pig
two wild boars = wild boar
european bear = bear
edward bear = teddy bear
baby of a gnu, sitting gnu, blue gnu = gnu
baby sheep = lamb
mountaingoat = mountain goat
big eared rabbit = rabbit
sleeping capybara = capybara
albino peahen = white peacock
colorful rooster = rooster
magellanic penguin, little penguin = penguin
silver gull = seagull
adelaide rosella = parrot
rainbow lorikeet = parrot
helmeted guinea fowl = guinea fowl
great blue heron = heron
couple of wings = wings
stripey fish = striped fish
freshwater mussel = mussel
spiny lobster = lobster
very poisonous lionfish = lionfish
singing dinosaur = dinosaur
wizard's hat = wizard hat
elf's hat = elf hat
christmas hat = santa hat
green irish hat = green hat
adjustable wrench = wrench
blue jeans with patches, blue jeans = jeans
bell bottom pants = bell bottoms
top and skirt = skirt
modern clothespin, old-fashioned clothespin = clothespin
yellow hard hat = hard hat
sledge = sled
wishing well = well
two city houses = house
pink dream house, swiss house = house
wooden cottage = cottage
tower with a red flag, round tower with a pink flag = tower
castle in ruins = ruined castle
fountain of youth = fountain
blacksmith shop = blacksmith shop
formula one race car = race car
white locomotive = locomotive
old chinese sailing ship = sailing ship
sail boat, walnut sailboat = sailboat
colorful toy tugboat = tugboat
colorful toy cement truck, cement mixer = cement mixer
colorful toy tow truck = tow truck
huge dump truck, small dump truck = dump truck
crescent moon = crescent moon
full moon = moon
bulb ornament = christmas ornament
pine wreath = wreath
floppy-eared bunny, bunny with an easter egg, bunny = rabbit
chick inside an egg = chick
rake for sweeping leaves = rake
iron for ironing clothes = clothes iron
grave marker, cemetery marker = gravestone
birch at winter = birch tree
holm oak = oak tree
plant of common lavender = lavender
eggplant with fruit = eggplant plant
flower covered in dew drops = yellow flower
red and white anemone flower = anemone
hibiscus flower = hibiscus
purple pigface flower = purple flower
red gazania = gazania
white star petunia = petunia
head of red lettuce, bolted lettuce = head of lettuce
measuring tape, tape measure = measuring tape
double decker bus = double decker bus
passenger carriage = railway carriage
red-nosed reindeer = reindeer
hippo = hippopotamus
brown potato = potato
garden spade = shovel
large metal mallet = mallet
large paintbrush = paintbrush
colorful bow = bow
chick hatched = chick
microwave oven = microwave
christmas stocking = stocking
refrigerator = fridge
fireman = firefighter
coffee brewer, coffee machine, coffee press = coffee maker
chopping board = cutting board
tube of paint = paint tube
xanthia = moth
pool lounge = lounge chair
island = kitchen island
ribbon = bow
screen = folding screen
hood = range hood
tv = television
tool = kitchen tool
spice tower = spice rack
stereo amplifier, mini stereo = stereo
abdominal bench = weight bench
keys = bunch of keys
bananas = bunch of bananas
""")

# The category of a name where it isn't the name itself or its last word.
KIND_OF = _lines("""
bulldog, poodle, guide dog, service dog, dingo = dog
black cat, cat face, siamese cat, white kitten = cat
cow face = cow
dog face = dog
dragon face = dragon
horse face = horse
monkey face = monkey
mouse face = mouse
pig face = pig
rabbit face, little rabbit = rabbit
tiger face, sumatran tiger = tiger
polar bear = bear
emperor tamarin = monkey
ewe, lamb = sheep
brown hen = chicken
bull = ox
doe, caribou, wapiti, moose = deer
drake = duck
gander = goose
honeybee = bee
monarch butterfly = butterfly
t rex, long necked dinosaur = dinosaur
tropical fish, striped fish, clownfish, butterflyfish, lionfish, coral trout, moon wrasse = fish
blue groper, dolphinfish = fish
unicorn = unicorn
blossom, cherry blossom, wilted flower, gazania, petunia, anemone = flower
flowers, orchids, white lily, marigold, daffodil, iris = flower
tulips = tulip
potted plant, indoor plant, decorative plant, little plant, succulent plant, spider plant = plant
spathiphyllum, yucca, bamboo, ficus = plant
acacia, cypress, pine, poplar, japanese maple, sycamore maple, copper beech, peach blossom, pine under snow = tree
blue pine under snow, leafy tree, pine tree, bonsai tree, birch tree, oak tree = tree
palm tree, coconut tree = palm tree
maple leaf, fallen leaf, green leaf = leaf
gold medal, silver medal, bronze medal, military medal = medal
glass of milk, champagne glass, tumbler glass, cocktail glass, wine glass, beer glass, glass of water = glass
bowl of noodles, bowl with a spoon, bowl of ice cream, bowl with fruits, bowl with salad = bowl
pot of food, large pot, utensils pot = pot
pan of food, frying pan, large pan = pan
raw meat, meat on a bone, steak = meat
head of lettuce = lettuce
tropical cocktail = cocktail
cardboard package, bento box, takeout box = box
log of wood, wood logs = log
planet with rings, mercury, venus, mars, jupiter, saturn, uranus, neptune, pluto, earth = planet
suv, sports car, race car, taxi, convertible = car
semi truck, pickup truck, delivery truck, garbage truck, logging truck, tanker truck = truck
container truck, toy truck = truck
dump truck, tow truck, blue truck = truck
fast train, mountain train = train
double decker bus, city bus, yellow school bus, green bus, trolleybus, minibus = bus
bank, post office, office building, department store, convenience store, hospital, hotel, school, factory = building
classical building, town hall, university, warehouse, inn, tavern, jailhouse, monastery, fishery = building
farm, stable = building
blacksmith shop = building
hut, cottage, old house, garden hut, child hut, dog house, doll house, house of the hunter = house
fort, fortress, ruined castle, japanese castle, fairytale castle = castle
round tower, square tower, watch tower, red tower = tower
medieval tent, circus tent, canopy tent, tepee, camping tent = tent
blue fedora, green fedora, sombrero, top hat, cowboy hat, party hat, wizard hat, santa hat, hat = hat
elf hat, propeller hat, feathered hat, brown hat, purple hat, straw hat, hard hat = hat
baseball cap, graduation cap = cap
cap = cap
high heeled shoe, flat shoe, running shoe, ballet shoes, brown shoe, moccasin, sneakers, slippers = shoe
high heels, red high heeled shoe = shoe
hiking boot, bootie = boot
trousers, white pants, bell bottoms = pants
running shirt, folded shirt, polo shirt = shirt
black dress = dress
lab coat = coat
red handbag, handbag, purse, clutch bag, shopping bag = bag
folded clothes, hanging clothes = clothes
electric guitar, classical guitar, bass guitar = guitar
grand piano, upright piano = piano
conga drum = drum
movie camera, video camera, security camera, digital camera = camera
telephone, telephone receiver, mobile phone, cordless phone = phone
computer monitor = computer
red book, blue book, green book, orange book, open book = book
old key = key
mantel clock, alarm clock, cuckoo clock = clock
desk lamp, street lamp, little lamp, camping lamp, ceiling lamp, chandelier lamp, pendant lamp, outdoor lamp = lamp
pedestal vase lamp, street light, classic lamppost, park light, porch light, hanging light, wall light = lamp
ceiling fan, table fan, hand fan = fan
leather sofa, small sofa, long sofa, corner sofa, sofa bed, rattan sofa, clear sofa, burlap sofa, couch = sofa
futon couch, futon = sofa
leather armchair, modern armchair, rattan armchair, armchair with ottoman = armchair
kick scooter, motor scooter = scooter
exercise bike = bicycle
electric wheelchair = wheelchair
cruise ship, sailing ship, ferry = ship
motorboat, speedboat, rowboat, sailboat, tugboat, canoe = boat
crescent moon, first quarter moon, last quarter moon, moon face = moon
sun face = sun
storm cloud, rain cloud, snow cloud = cloud
open cardboard box, cardboard box, juice box = box
red apple, green apple, apples = apple
bell pepper, hot pepper, yellow pepper, green pepper = pepper
brown mushroom, toadstool = mushroom
lime slice = lime
lemon slice, yellow lemon = lemon
orange slice, mandarin orange, tangerine = orange
loaf of bread, flatbread, baguette = bread
birthday cake, pink cake, shortcake = cake
pizza slice = pizza
tennis racket, badminton racket = racket
hockey stick, ice hockey stick, lacrosse stick = stick
billiard ball, soccer ball, rugby ball, tennis ball, bowling ball, beach ball = ball
kitchen knife = knife
beer mug, coffee mug = mug
coffee cup, plastic cup, teacup, cup with straw = cup
magnifying glass = magnifying glass
oak chair, folding chair, plastic chair, teak chair, japanese chair, school chair = chair
rocking horse, carousel horse = rocking horse
toy train = toy train
boy, girl = child
red kangaroo = kangaroo
reindeer = deer
pink flamingo = flamingo
indian blackbuck = antelope
white peacock = peacock
zebu = cow
mountain goat = goat
lark, swallow, magpie, cuckoo, quetzal, bluebird, blackbird, vulture = bird
lion cub, lioness = lion
boar, wild boar = wild boar
mallet = hammer
old jar = jar
wall spotlight, wall lamp artwork = lamp
chair with cushion = chair
table with tablecloth = table
dresser with drawers = dresser
buffalo monster = monster
bunch of bananas = banana
pottery = vase
table on trestles = table
basin = bowl
dumper = truck
chest, trunk = chest
cutting pliers = pliers
apple core = apple
ballerina = dancer
breakdancer = dancer
bicycle wheel, tractor wheel, tire = wheel
cricket ball = ball
monkey king = king
hoverfly, hornet = bee
rhea, crow, pelican, toucan, crowned crane = bird
water buffalo = buffalo
oriental rug, round carpet = carpet
pink tricycle = tricycle
grey jacket = jacket
""")

# Last words that stand for the whole name: "oak table" is a table, but "hot dog" is no dog.
HEADS = _words("""
airplane, apple, armchair, backpack, bag, ball, balloon, barrel, basket, bat, bathtub, bear, bed, bench, bicycle, bin,
bird, boat, book, bookcase, boot, bottle, bowl, box, bread, broom, brush, bucket, bus, bush, butterfly, cabinet, cake,
camera, can, candle, car, carpet, carriage, castle, cat, chair, chimney, clock, cloud, coat, computer, crab, crate,
crown, cup, curtain, desk, dinosaur, dog, doll, door, dragon, dress, drill, drum, elephant, fence, fireplace, fish,
flower, fork, fountain, freezer, fridge, frog, ghost, glass, glasses, glove, guitar, hammer, hat, heater, hedge,
helmet, horse, house, jacket, kettle, key, knife, ladder, lamp, lantern, laptop, lemon, light, lion, machine, mailbox,
mat, microphone, mirror, monkey, monster, moon, motorcycle, mug, mushroom, ornament, oven, owl, panda, parrot, pear,
pen, pencil, penguin, phone, plant, plate, player, pool, pot, printer, rabbit, rack, radiator, radio, ring, robot,
rock, rocket, ruler, saw, scarf, scissors, scooter, screwdriver, seat, shark, shelves, ship, shirt, shovel, sink,
skirt, snake, sock, sofa, speaker, spoon, squash, staircase, star, stereo, stool, stove, suitcase, sun, sunglasses,
swing, table, teapot, tent, tiger, toilet, towel, tower, tractor, train, tree, truck, trumpet, umbrella, vase, violin,
wardrobe, watch, whale, wheel, wrench
""")
# Names that stay whole although they end in such a word.
WHOLE = _words("""
baby bed, baby bottle, boxing glove, bread box, bunk bed, cable car, changing table, christmas light, christmas
ornament, christmas tree, clothes basket, clothes rack, coffee table, compost bin, confetti ball, cricket bat, crystal
ball, disco ball, dressing table, dryer machine, drying rack, dvd player, fax machine, ferris wheel, fire truck,
flower box, football table, garage door, hospital bed, hot air balloon, hot dog, jack o lantern, medicine box, oil
barrel, paper lantern, pen box, piano bench, pinball machine, ping pong table, plant box, police car, pool table,
punching bag, railway carriage, recycling bin, recycling box, rice ball, sea lion, shopping basket, shower door,
sleeping bag, slot machine, spiral staircase, spray bottle, stone lantern, straw mat, swimming pool, tea light, teddy
bear, tin can, toilet brush, towel rack, toy car, traffic light, trash can, washing machine, water heater, wine bottle
""")

# Not wanted at all, by whole name.
DROPPED = _words("""
admission tickets, alembic, amphora, arrow straight ahead, arrow turn right, arrow turn right and ahead, ashtray,
ballot box with ballot, bar chart, beach with umbrella, bell with slash, big fireworks, bikini, black nib, boiler,
bomb, bookmark tabs, boom, bow and arrow, bridge at night, briefs, broken chain, bus stop, camping, card file box,
card index, card index dividers, carp streamer, cathedral, chart decreasing, chart increasing, chart increasing with
yen, church, cigarette, cityscape, cityscape at dusk, club suit, coffin, concrete sidewalk, confetti, construction,
contemporary living room, control knobs, credit card, crossed swords, cyclone, dagger, desert, desert island, diamond
suit, diya lamp, dna, dollar banknote, doorbell, down at the docks, drop of blood, e mail, electric plug, elevator,
elevator door, emergency sign, enter the cave, entry speech unit, envelope with arrow, euro banknote, female, file
folder, film frames, firecracker, fireworks, fitness tower, flag in hole, flower playing cards, fluorescent light,
fluorescent strip, fog, foggy, funeral urn, furnace, globe with meridians, graveyard, hammer and pick, hammer and
wrench, hamsa, headstone, heart suit, hindu temple, hot springs, identification card, inbox tray, incoming envelope,
intercom, intercom with screen, island extension, japanese dolls, joker, kaaba, kimono, knot, letter tray, level
slider, lightning, link, locked locker, love hotel, lower corner cabinet, magic stones, mahjong red dragon, male,
mannequin female, mannequin male, map of japan, martial arts uniform, mate, medieval city, memo, microbe, military
helmet, milky way, mine, moai, mobile phone with arrow, money bag, money with wings, moon viewing ceremony, mosque,
motorway, mount fuji, mp3 base, mp3 station, musical note, musical notes, musical score, muted speaker, national park,
nazar amulet, new moon, night with stars, number lock, obelisk, oden, open file folder, outbox tray, page facing up,
page with curl, parking slot, pedestrian crossing, pedestrian railing, performing arts, petri dish, pick, pig nose,
pine decoration, placard, police car emblems to put on the sedan, porch column, pound banknote, pouring glass, prayer
beads, rail crossing, rails, railway track, receipt, red envelope, reminder ribbon, rosette, rugby goal posts, safety
pin, sake, sari, shinto shrine, shipwreck, smoke detector, snow capped mountain, spade suit, sparkler, sparkles,
speaker high volume, speaker low volume, speaker medium volume, spider dancing with a fly, spider playing computer
games, spider playing soccer, spider web, stadium, station, stone grill device, stop sign, sun behind cloud, sun
behind large cloud, sun behind rain cloud, sun behind small cloud, sunrise, sunrise over mountains, sunset, sword in
the stone, synagogue, syringe, tanabata tree, totem pole, track lights, train sign, tux airways, urinal, wall hanger,
waning crescent moon, waning gibbous moon, water pistol, waxing crescent moon, waxing gibbous moon, wedding, white
flower, wind face, window blind, window shutter, world map, x ray, yen banknote
""")
_DROPPED_PATTERN = re.compile(
    r"\bo clock|oclock|thirty|\bflag\b|sign\b|\bletter\b|\bbanknote|\bplug\b|\bswitch\b|\bwall socket|double socket|"
    r"railing|window|\bgun\b|sword|tomb|grave|headstone|monument stone|parking|tux\b|linux|arrow|bill \d|gobo",
)

# What a furniture catalogue or a stamp calls wrongly, by the file's own name.
BY_FILE = _lines("""
chaussette = sock
ps4-joystick = game controller
MIDI-keyboard = piano keyboard
com_bath2_soap = soap dispenser
kalender = calendar
""")

# Words of the emoji class "Animals & Nature" that are no animals.
PLANTS = _words("""
blossom, bouquet, cactus, cherry blossom, clover, coral, fallen leaf, feather, green leaf, herb, hibiscus, hyacinth,
leafy tree, lotus, maple leaf, mushroom, nest, palm tree, paw print, pine tree, potted plant, rose, seedling, sheaf of
wheat, spiral shell, sunflower, tulip, wilted flower, wing
""")


def named(words: str) -> Name | None:
    """Category and name of a free-form name, or None where the subject isn't wanted."""
    words = re.sub(r"\s+", " ", words.lower().replace("’", "'").strip(" .!?"))
    words = RENAMED.get(words, words)
    if words in DROPPED or _DROPPED_PATTERN.search(words) or not re.fullmatch(r"[a-z' -]+", words):
        return None
    words = words.replace("'s ", " ").replace("'", "").replace("-", " ")
    last = words.split()[-1]
    category = KIND_OF.get(words) or (last if last in HEADS and words not in WHOLE else words)
    return Name(category, words) if len(category.split()) <= 3 else None


def emoji(slug: str) -> Name | None:
    """Of an iconify name: "two-hump-camel"."""
    return named(slug.replace("-", " "))


def furniture(name: str, file: str) -> Name | None:
    """Of a catalogue entry: its name and its OBJ file's stem."""
    return named(BY_FILE.get(file, name))


# Stamps whose sentence doesn't name them.
STAMPS = _lines("""
naturalforces/lightningbolt, animals/birds/cartoon/pengwin = lightning
food/bread = bread
food/cheese = cheese
food/vegetables/broccoli = broccoli
food/vegetables/redlettuce = head of red lettuce
food/loaf_of_bread = loaf of bread
food/fruit/apple_fuji, food/fruit/apple_granny_smith, food/fruit/apple_sierra_beauty = apple
food/vegetables/pattypan_squash = squash
household/toilet = toilet
animals/insects/hoverfly = hoverfly
animals/fish/bluegroper = blue groper
animals/shellfish/abalone = abalone
plants/mushrooms/cep, plants/mushrooms/cep-1, plants/mushrooms/cep-2 = mushroom
plants/trees/holly_leaves = holly leaf
plants/trees/rambutan, plants/trees/tree336 = tree
plants/flowers/adeenia, plants/flowers/anthoorium, plants/flowers/appooppanthady, plants/flowers/bolsom = flower
plants/flowers/chemparathi = hibiscus
plants/flowers/plastic/chuvanna_plastic_poo = red flower
plants/flowers/flower7, plants/flowers/flower4 = flowers
seasonal/clover, seasonal/shamrock = clover
seasonal/christmas/Candy_cane_photo_1, seasonal/christmas/Candy_cane_photo_2 = candy cane
seasonal/christmas/Christmas_pudding = christmas pudding
seasonal/christmas/German_Christmas_toy = wooden figure
seasonal/christmas/Mince_Pie = mince pie
seasonal/christmas/Roast_turkey = roast turkey
seasonal/christmas/hard_candy = candy
seasonal/christmas/lamp = christmas light
seasonal/easter/wrapped_chocolate_easter_egg, seasonal/easter/wrapped_chocolate_easter_egg_2 = chocolate egg
space/apollo_lander = lunar lander
space/spacewalk = astronaut
space/voyager2 = space probe
space/moon/moon_3qt, space/moon/moon_full = moon
space/moon/moon_crescent = crescent moon
space/planets/0_sun = sun
space/planets/1_mercury = mercury
space/planets/2_venus = venus
space/planets/3_earth = earth
space/planets/4_mars = mars
space/planets/5_jupiter = jupiter
space/planets/6_saturn = saturn
space/planets/7_uranus = uranus
space/planets/8_neptune = neptune
space/planets/9_pluto = pluto
sports/australian_rules_football = rugby ball
sports/cartoon/football_helmet_front, sports/cartoon/football_helmet_side = football helmet
vehicles/flight/cartoon/eddieCopter = helicopter
vehicles/7spoke256 = wheel
vehicles/locomotive/cartoon/boxcar = boxcar
vehicles/locomotive/cartoon/caboose = caboose
vehicles/locomotive/cartoon/tanker = tank wagon
vehicles/locomotive/cartoon/tender = coal wagon
vehicles/locomotive/cartoon/toy_train = toy train
vehicles/ship/cartoon/bathyscape = submarine
naturalforces/fire = fire
household/electronics/inkjet_printer, household/electronics/laser_printer = printer
household/electronics/calculator = calculator
household/electronics/compact_disc = disc
hobbies/knitting = knitting
town/monuments/cartoon/eiffel_tower = tower
town/monuments/inukshuk-photo, town/monuments/inukshuk-outline = stone pile
""")
_END = re.compile(r"[.!?:;–—(]| is | are | from | lets | for taking |, (?:sliced|from|called|also)")
_ARTICLES = re.compile(
    r"^(an?|the|some|our|one|eat your|it's|remember to flush the)\s+|"
    r"^(pair|bunch|piece|cluster|cup|set) of (?!coffee|espresso|bananas)"
)


def stamp(file: str, caption: str) -> Name | None:
    """Of a stamp's path and first sentence: "A pair of white pants."."""
    if file in STAMPS:
        return named(STAMPS[file])
    words = _END.split(caption.strip(), maxsplit=1)[0].lower().replace("“", "").replace("”", "").strip()
    while (shorter := _ARTICLES.sub("", words)) != words:
        words = shorter
    return named(words) if words else None


_COSTUMES = _lines("""
cub = lion cub
bird-flying = pigeon
buffalo = buffalo
airplane = airplane
bike = bicycle
car-blue, car-bug, car = car
cheesy-puffs = cheese puffs
convertible = convertible
diver = diver
elephant = elephant
fantasy = monster
fire-hydrant = fire hydrant
flower-vase = vase of flowers
fruit_platter = fruit platter
fortune_cookie = fortune cookie
ghoul = ghost
insect = ant
lego = toy brick
lioness = lioness
magiccarpet = magic carpet
mic = microphone
monkeyking = monkey king
palmtree = palm tree
partyhat = party hat
princess = princess
sail-boat, yacht, tug-boat = boat
soccer = soccer ball
sunglassF = sunglasses
tennisball = tennis ball
troll = troll
wizardhat = wizard hat
bananas = bananas
beachball = beach ball
wild = buffalo monster
boy, boycurly, boyshorts = boy
girl = girl
womanwaving, womanbun = woman
roundman = man
royalperson = king
singer = singer
witch = witch
wizard = wizard
""")
# Costumes that are photographs; the rest are drawn.
COSTUME_PHOTOS = _words("""
airplane, bat1-a, bat1-b, bike, bird-flying, buffalo1, bus, car-blue, car-bug, cheesy-puffs, cow1, crab2, elephant,
fire-hydrant, flower-vase, fortune_cookie, fruit_platter, giraffe1-b, grasshopper2, insect1-a, insect1-b, insect2,
lamp, lego, palmtree, rock, sail-boat, squirrel1, tennisball, trampoline, tug-boat, umbrella, yacht
""")
# Trademarks, real people, dress of cultures, and things that aren't things.
_NO_COSTUME = re.compile(
    r"^(cat1|gobo|amon|anjuli|anna|calvrett|cassy|chamak|dan\d|ed$|jay|jodi|lee-fan|mako|marissa|nathan|nina|paul|sam$|"
    r"breakdancer\d|football|referee|thai|ribbon-dancer|square|button|street-cleaner|scoreboard|car-cow|skull|baby|"
    r"hair|train$|manhole|marble)"
)

# Named like a pose, but another creature altogether.
_OTHERS = frozenset({"giraffe1-b", "monster1-b"})


def costume(stem: str) -> tuple[Name, str, str] | None:
    """Name, subject and pose of a Scratch costume's file name: "dog2-a" gives a dog, "dog2" and "a"."""
    if _NO_COSTUME.match(stem):
        return None
    subject, pose = stem, ""
    if re.search(r"\d-|^(ballerina|breakdancer)-", stem) and stem not in _OTHERS:
        subject, _, pose = stem.partition("-")
    base = re.sub(r"\d*(-b)?$", "", subject)
    name = named(_COSTUMES.get(base, base.replace("_", " ").replace("-", " ")))
    return (name, subject, pose) if name else None
