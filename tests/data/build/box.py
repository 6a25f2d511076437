"""A furniture catalogue of two models: one textured cube, upright and on a wall."""

import io
import zipfile
from pathlib import Path

from PIL import Image

# One cube: the front (+z) takes the texture's left half (red), the back the right half (blue), the top is green.
OBJ = """mtllib box.mtl
v -1 -1 1\nv 1 -1 1\nv 1 1 1\nv -1 1 1\nv -1 -1 -1\nv 1 -1 -1\nv 1 1 -1\nv -1 1 -1
vt 0.1 0.1\nvt 0.4 0.1\nvt 0.4 0.9\nvt 0.1 0.9\nvt 0.6 0.1\nvt 0.9 0.1\nvt 0.9 0.9\nvt 0.6 0.9
usemtl skin
f 1/1 2/2 3/3\nf 1/1 3/3 4/4\nf 6/5 5/6 8/7\nf 6/5 8/7 7/8
usemtl grey
f 2 6 7\nf 2 7 3\nf 5 1 4\nf 5 4 8\nf 5 6 2\nf 5 2 1
usemtl green
f 4 3 7\nf 4 7 8
"""
MTL = "newmtl skin\nKd 1 1 1\nmap_Kd skin.png\nnewmtl grey\nKd .5 .5 .5\nnewmtl green\nKd 0 1 0\n"
CATALOGUE = """# a catalogue
id=Toys
name#1=Caf\\u00e9 box
category#1=Office
creator#1=Someone
model#1=/toys/box/box.obj
width#1=20
depth#1=20
height#1=20
name#2=Wall box
category#2=Kitchen
creator#2=Someone
model#2=/toys/box/box.obj
width#2=40
depth#2=10
height#2=20
elevation#2=100
modelRotation#2=1 0 0 0 0 1 0 -1 0
"""


def write_catalogue(path: Path) -> Path:
    skin = Image.new("RGB", (8, 8), "red")
    skin.paste((0, 0, 255), (4, 0, 8, 8))
    png = io.BytesIO()
    skin.save(png, "PNG")
    with zipfile.ZipFile(path, "w") as files:
        files.writestr("PluginFurnitureCatalog.properties", CATALOGUE)
        files.writestr("toys/box/box.obj", OBJ)
        files.writestr("toys/box/box.mtl", MTL)
        files.writestr("toys/box/skin.png", png.getvalue())
    return path
