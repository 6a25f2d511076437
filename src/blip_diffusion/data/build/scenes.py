"""The photographed and drawn places of the sources, chosen by eye: what a prompt says, and where the ground begins."""

from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from blip_diffusion.data.build.cutouts import LARGEST, icon, package
from blip_diffusion.data.synthetic.assets import SCENE_HEIGHT, SCENE_WIDTH, Scene

# The word that a scene judge names, and the ways to say it in a prompt.
PHRASES: dict[str, tuple[str, ...]] = {
    "autumn leaves": ("among autumn leaves", "in autumn leaves"),
    "baseball field": ("on a baseball field", "at a baseball field"),
    "basketball court": ("on a basketball court", "at a basketball court"),
    "beach": ("on the beach", "at the beach", "at the seaside"),
    "bedroom": ("in a bedroom", "in the bedroom"),
    "brick wall": ("in front of a brick wall", "against a brick wall"),
    "canyon": ("in a canyon", "in the canyon"),
    "castle": ("in front of a castle", "at the castle"),
    "city": ("in front of a city skyline", "in a big city"),
    "city at night": ("in a city at night", "in front of a city at night"),
    "desert": ("in the desert", "in a dry desert"),
    "field": ("in a field", "in a wide field"),
    "flower garden": ("in a flower garden", "among flowers", "in front of flowers"),
    "forest": ("in a forest", "in the forest", "in the woods"),
    "garden": ("in a garden", "in the garden"),
    "graffiti wall": ("in front of a graffiti wall", "in front of a mural"),
    "grass": ("on grass", "on the grass"),
    "hall": ("in a hall", "in a hallway"),
    "hill": ("on a hill", "on top of a hill"),
    "kitchen": ("in a kitchen", "in the kitchen"),
    "lake": ("by a lake", "at the lake"),
    "leaves": ("among green leaves", "in front of green leaves"),
    "library": ("in a library", "in front of bookshelves"),
    "mansion": ("in front of a mansion", "in front of a big house"),
    "moon": ("on the moon", "on the surface of the moon"),
    "mountains": ("in the mountains", "in front of mountains"),
    "park": ("in a park", "in the park"),
    "pier": ("on a wooden pier", "on a boardwalk"),
    "playground": ("on a playground", "at the playground"),
    "pool": ("by a pool", "at the swimming pool"),
    "river": ("by a river", "at a stream"),
    "road": ("on a road", "on the street"),
    "rocks": ("on rocks", "on stones"),
    "room": ("in a living room", "in a bright room"),
    "school": ("in front of a school", "at school"),
    "sea": ("in the sea", "in the waves"),
    "shop": ("in a shop", "in a clothing store"),
    "sky": ("in the sky", "among the clouds"),
    "space": ("in space", "in outer space", "among the stars"),
    "sports field": ("on a sports field", "on a football field"),
    "stage": ("on a stage", "on the stage"),
    "sunset": ("at sunset", "in front of a sunset"),
    "tennis court": ("on a tennis court", "at a tennis court"),
    "train tracks": ("on train tracks", "on the railway tracks"),
    "underwater": ("under the sea", "underwater"),
    "village": ("in a village", "in front of old houses"),
    "wooden floor": ("on a wooden floor", "on wooden planks"),
}

# Source, file, horizon (the fraction of the height where ground begins), word; "!" keeps a scene for evaluation.
PLACES = """
scratch Indoors/bedroom1.gif .60 bedroom
scratch Indoors/bedroom2.gif .60 bedroom !
scratch Indoors/chalkboard.jpg .80 stage
scratch Indoors/clothing-store.jpg .60 shop
scratch Indoors/hall.jpg .62 hall
scratch Indoors/kitchen.jpg .78 kitchen
scratch Indoors/party-room.jpg .60 room
scratch Indoors/room1.jpg .70 library
scratch Indoors/room2.jpg .58 library !
scratch Indoors/room3.jpg .62 room
scratch Indoors/spotlight-stage.jpg .66 stage
scratch Nature/beach-malibu.jpg .58 beach
scratch Nature/canyon.jpg .55 canyon
scratch Nature/desert.gif .60 desert
scratch Nature/flower-bed.jpg .62 flower garden
scratch Nature/flowers.gif .80 flower garden
scratch Nature/forest.jpg .72 forest
scratch Nature/garden-rock.jpg .40 garden
scratch Nature/grand-canyon.jpg .66 canyon !
scratch Nature/gravel-desert.jpg .52 desert !
scratch Nature/hill.jpg .42 hill
scratch Nature/lake.jpg .60 lake
scratch Nature/moon.jpg .30 moon
scratch Nature/pathway.jpg .62 garden
scratch Nature/stars.gif .85 space
scratch Nature/tree.jpg .45 garden
scratch Nature/underwater.gif .82 underwater
scratch Nature/water-and-rocks.jpg .55 river
scratch Nature/wave.jpg .66 sea
scratch Nature/woods-and-bench.jpg .60 park
scratch Nature/woods.gif .66 forest
scratch Outdoors/all-sports-mural.jpg .66 graffiti wall
scratch Outdoors/atom-playground.jpg .78 playground
scratch Outdoors/bench-with-view.jpg .58 park
scratch Outdoors/berkeley-mural.jpg .80 graffiti wall !
scratch Outdoors/boardwalk.jpg .56 pier
scratch Outdoors/brick-wall-and-stairs.jpg .66 brick wall
scratch Outdoors/brick-wall1.jpg .72 brick wall
scratch Outdoors/brick-wall2.jpg .70 brick wall !
scratch Outdoors/building-fireproof.jpg .86 brick wall
scratch Outdoors/castle.jpg .80 castle
scratch Outdoors/city-with-water.jpg .62 city at night
scratch Outdoors/city-with-water2.jpg .66 city
scratch Outdoors/driveway.jpg .56 mansion
scratch Outdoors/graffiti.jpg .85 graffiti wall
scratch Outdoors/hallway_outdoors.jpg .72 hall
scratch Outdoors/hay_field.jpg .52 field
scratch Outdoors/houses.jpg .72 village
scratch Outdoors/mansion.jpg .70 mansion
scratch Outdoors/mural-faro.jpg .84 graffiti wall
scratch Outdoors/night-city-with-street.gif .68 city at night
scratch Outdoors/night-city.gif .84 city at night !
scratch Outdoors/parking-ramp.jpg .62 road !
scratch Outdoors/pool.jpg .52 pool
scratch Outdoors/route66.jpg .55 road
scratch Outdoors/school1.gif .70 school
scratch Outdoors/school2.jpg .72 school !
scratch Outdoors/the-movies.jpg .60 road
scratch Outdoors/train-tracks1.jpg .52 train tracks
scratch Outdoors/train-tracks2.jpg .50 train tracks !
scratch Outdoors/train-tracks3.gif .55 train tracks
scratch Outdoors/village.jpg .60 village
scratch Outdoors/wooden-house.jpg .74 village
scratch Sports/baseball-field.jpg .52 baseball field
scratch Sports/basketball-court1-a.jpg .58 basketball court
scratch Sports/basketball-court1-b.jpg .62 basketball court !
scratch Sports/basketball-court2.png .60 basketball court
scratch Sports/football-field.jpg .45 sports field
scratch Sports/playing-field.jpg .52 sports field !
scratch Sports/tennis-backboard.jpg .55 tennis court
tuxpaint-data cliff.jpg .75 mountains
tuxpaint-data corn_maze.jpg .75 field
tuxpaint-data jellyfish.jpg .85 underwater
tuxpaint-data mossy_log.jpg .60 forest
tuxpaint-data mudstone.jpg .40 rocks
tuxpaint-data ocean_splash.jpg .75 sea
tuxpaint-data ocean_waves.jpg .62 sea !
tuxpaint-data redwoods_above.jpg .85 forest
tuxpaint-data rocks.jpg .40 rocks
tuxpaint-data sheep.jpg .60 field
tuxpaint-data sun_behind_clouds.jpg .85 sky !
tuxpaint-data sun_behind_leaves.jpg .85 leaves
tuxpaint-data trees_above.jpg .85 forest
tuxpaint-data trees_at_dusk.jpg .85 sunset
plasma-workspace-wallpapers Autumn .72 autumn leaves
plasma-workspace-wallpapers BytheWater .55 pier
plasma-workspace-wallpapers ColdRipple .60 pier !
plasma-workspace-wallpapers DarkestHour .66 lake
plasma-workspace-wallpapers EveningGlow .62 sunset
plasma-workspace-wallpapers FallenLeaf .66 autumn leaves
plasma-workspace-wallpapers Kite .85 sky
plasma-workspace-wallpapers Path .66 forest !
plasma-workspace-wallpapers Volna .50 beach
plasma-workspace-wallpapers summer_1am .62 lake !
mate-backgrounds Blinds.jpg .85 leaves
mate-backgrounds Dune.jpg .62 field
mate-backgrounds FreshFlower.jpg .85 flower garden
mate-backgrounds Garden.jpg .80 flower garden !
mate-backgrounds GreenMeadow.jpg .62 grass
mate-backgrounds RainDrops.jpg .85 leaves
mate-backgrounds Storm.jpg .66 road
mate-backgrounds Wood.jpg .30 wooden floor
mate-backgrounds YellowFlower.jpg .85 flower garden
"""
_FOLDERS = {
    "scratch": "usr/share/scratch/Media/Backgrounds",
    "tuxpaint-data": "usr/share/tuxpaint/templates",
    "plasma-workspace-wallpapers": "usr/share/wallpapers",
    "mate-backgrounds": "usr/share/backgrounds/mate/nature",
}

# Emoji that are pictures of a place: slug, horizon, word. One that isn't a full tile at a vendor's is left out there.
VIEWS = """
beach-with-umbrella .66 beach
bridge-at-night .72 city at night
camping .66 forest
cityscape .80 city
cityscape-at-dusk .80 city
desert .60 desert
desert-island .70 beach
foggy .80 city
milky-way .80 space
motorway .60 road
mountain .70 mountains
mount-fuji .74 mountains
national-park .66 mountains
night-with-stars .80 city at night
railway-track .60 train tracks
snow-capped-mountain .72 mountains
sunrise .66 sunset
sunrise-over-mountains .70 sunset
sunset .74 sunset
"""
HELD_VIEWS = frozenset(
    {"emojione beach-with-umbrella", "emojione milky-way", "twemoji sunset", "emojione snow-capped-mountain"}
)
VENDORS = ("fluent-emoji-flat", "noto", "twemoji", "emojione")


def scenes(source: str, folder: Path, licence: str) -> Iterator[tuple[Scene, Image.Image]]:
    """The chosen scenes of one source."""
    if source in VENDORS:
        yield from _views(source, folder, licence)
    for line in PLACES.strip().splitlines():
        of, file, horizon, *words = line.split()
        if of != source:
            continue
        held = words[-1] == "!"
        word = " ".join(words[:-1] if held else words)
        path = _file(folder / _FOLDERS[source] / file)
        if picture := _opened(path):
            yield _scene(word, f"{source} {file}", licence, float(horizon), held), picture


def _scene(word: str, source: str, licence: str, horizon: float, held: bool) -> Scene:
    return Scene(PHRASES[word], word, source, licence, horizon, "heldout" if held else "train")


def _file(path: Path) -> Path:
    """The file itself, or of a wallpaper's folder the picture that is nearest to 1280 pixels wide and high enough."""
    if not path.is_dir():
        return path
    files = sorted((path / "contents/images").glob("*x*.*"))
    return min(files, key=lambda file: abs(int(file.stem.split("x")[0]) - 1280)) if files else path


def _opened(path: Path) -> Image.Image | None:
    try:
        picture = Image.open(path)
        if picture.width * picture.height > LARGEST:
            return None
        picture.draft("RGB", (2 * SCENE_WIDTH, 2 * SCENE_HEIGHT))
        return picture.convert("RGB")
    except (OSError, Image.DecompressionBombError):
        return None


def _views(vendor: str, folder: Path, licence: str) -> Iterator[tuple[Scene, Image.Image]]:
    icons = package(folder, "icons.json")
    for line in VIEWS.strip().splitlines():
        slug, horizon, word = line.split(maxsplit=2)
        picture = icon(icons, slug, 3 * SCENE_WIDTH // 2)
        if picture and (tile := _tile(picture)):
            held = f"{vendor} {slug}" in HELD_VIEWS
            yield _scene(word, f"{vendor} {slug}", licence, float(horizon), held), tile


def _tile(picture: Image.Image) -> Image.Image | None:
    """The middle of a drawing without its rounded corners, or None where it isn't opaque all over."""
    left, top, right, bottom = picture.getbbox() or (0, 0, 1, 1)
    width, height = right - left, bottom - top
    inset = 0.05 * width
    high = min(height - 2 * inset, (width - 2 * inset) * SCENE_HEIGHT / SCENE_WIDTH)
    middle = (top + bottom) / 2 + 0.04 * height  # a little low: ground matters more than sky
    cut = picture.crop((round(left + inset), round(middle - high / 2), round(right - inset), round(middle + high / 2)))
    low = cut.getchannel("A").histogram()
    if sum(low[250:]) < 0.995 * cut.width * cut.height:
        return None
    return cut.convert("RGB")
