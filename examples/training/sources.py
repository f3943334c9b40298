"""Which packages the corpus is made of, and under which licences.

Python packages (`python_packages.txt`) are checked when they are read: a wheel whose METADATA names
no permissive licence (MIT, BSD, Apache, ISC, PSF, HPND, ZPL, public domain ...) or names a
reciprocal one (GPL, LGPL, AGPL, MPL, EPL ...) contributes nothing, and neither does a file whose
head names a reciprocal licence. For Debian documentation the licence stands here, as the package's
copyright file states it for the documentation.
"""

from __future__ import annotations

import dataclasses
import pathlib


@dataclasses.dataclass(frozen=True)
class DebianPackage:
    """`licence` of the documentation; `paths`, a regular expression, says which files are text."""

    licence: str
    paths: str


SPHINX = r"_sources/.*\.(rst\.txt|txt|rst|md\.txt)(\.gz)?$"
PAGES = r"\.html?(\.gz)?$"
TEXTS = r"/doc/.*\.(txt|rst)(\.gz)?$"
MARKDOWN = r"/doc/.*\.md(\.gz)?$"
DICTIONARY = r"\.dict\.dz$"
WORDNET = r"/wordnet/data\.(adj|adv|noun|verb)$"

DEBIAN_PACKAGES = {
    "python3.11-doc": DebianPackage("PSF-2.0", SPHINX),
    "python-pandas-doc": DebianPackage("BSD-3-Clause", SPHINX),
    "python-sqlalchemy-doc": DebianPackage("MIT", SPHINX),
    "python-sklearn-doc": DebianPackage("BSD-3-Clause", SPHINX),
    "python-skimage-doc": DebianPackage("BSD-3-Clause", SPHINX),
    "python-statsmodels-doc": DebianPackage("BSD-3-Clause", SPHINX),
    "python-sympy-doc": DebianPackage("BSD-3-Clause", SPHINX),
    "python-ipython-doc": DebianPackage("BSD-3-Clause", SPHINX),
    "twisted-doc": DebianPackage("MIT", SPHINX),
    "python-tornado-doc": DebianPackage("Apache-2.0", SPHINX),
    "python-werkzeug-doc": DebianPackage("BSD-3-Clause", SPHINX),
    "python-flask-doc": DebianPackage("BSD-3-Clause", SPHINX),
    "python-jinja2-doc": DebianPackage("BSD-3-Clause", SPHINX),
    "sphinx-doc": DebianPackage("BSD-2-Clause", SPHINX),
    "python-dask-doc": DebianPackage("BSD-3-Clause", SPHINX),
    "python-xarray-doc": DebianPackage("Apache-2.0", SPHINX),
    "python-astropy-doc": DebianPackage("BSD-3-Clause", SPHINX),
    "nova-doc": DebianPackage("Apache-2.0", SPHINX),
    "neutron-doc": DebianPackage("Apache-2.0", SPHINX),
    "cinder-doc": DebianPackage("Apache-2.0", SPHINX),
    "keystone-doc": DebianPackage("Apache-2.0", SPHINX),
    "swift-doc": DebianPackage("Apache-2.0", SPHINX),
    "llvm-15-doc": DebianPackage("Apache-2.0 with LLVM exception", SPHINX),
    "clang-14-doc": DebianPackage("Apache-2.0 with LLVM exception", SPHINX),
    "cmake-doc": DebianPackage("BSD-3-Clause", SPHINX),
    "python-aiohttp-doc": DebianPackage("Apache-2.0", SPHINX),
    "python-setuptools-doc": DebianPackage("MIT", SPHINX),
    "python-cryptography-doc": DebianPackage("Apache-2.0 or BSD-3-Clause", SPHINX),
    "docutils-doc": DebianPackage("Public domain", TEXTS),
    "python-h5py-doc": DebianPackage("BSD-3-Clause", SPHINX),
    "python-pytest-doc": DebianPackage("MIT", SPHINX),
    "python-attr-doc": DebianPackage("MIT", SPHINX),
    "python-pil-doc": DebianPackage("HPND", SPHINX),
    "python-pymongo-doc": DebianPackage("Apache-2.0", SPHINX),
    "python-babel-doc": DebianPackage("BSD-3-Clause", SPHINX),
    "cython-doc": DebianPackage("Apache-2.0", SPHINX),
    "pypy3-doc": DebianPackage("MIT", SPHINX),
    "varnish-doc": DebianPackage("BSD-2-Clause", SPHINX),
    "openvswitch-doc": DebianPackage("Apache-2.0", SPHINX),
    "ovn-doc": DebianPackage("Apache-2.0", SPHINX),
    "ghc-doc": DebianPackage("BSD-3-Clause", SPHINX),
    "python-django-doc": DebianPackage("BSD-3-Clause", PAGES),
    "python-scipy-doc": DebianPackage("BSD-3-Clause", PAGES),
    "python-scrapy-doc": DebianPackage("BSD-3-Clause", PAGES),
    "python-nibabel-doc": DebianPackage("MIT", PAGES),
    "python-biopython-doc": DebianPackage("BSD-3-Clause (Biopython)", TEXTS),
    "python-reportlab-doc": DebianPackage("BSD-3-Clause", PAGES),
    "python-lxml-doc": DebianPackage("BSD-3-Clause", r"/doc/html/(?!api/|apidoc)[^/]*\.html$"),
    "postgresql-doc-15": DebianPackage("PostgreSQL", PAGES),
    "apache2-doc": DebianPackage("Apache-2.0", r"/manual/en/.*\.html$"),
    "libboost1.81-doc": DebianPackage("BSL-1.0", PAGES),
    "rust-doc": DebianPackage(
        "MIT or Apache-2.0",
        r"/html/(book|reference|nomicon|rust-by-example|cargo|rustc|edition-guide|rustdoc|unstable-book|embedded-book)/.*\.html$",
    ),
    "sqlite3-doc": DebianPackage("Public domain", PAGES),
    "tomcat10-docs": DebianPackage("Apache-2.0", PAGES),
    "ant-doc": DebianPackage("Apache-2.0", r"/manual/(?!api/).*\.html$"),
    "libwayland-doc": DebianPackage("MIT", PAGES),
    "libx11-doc": DebianPackage("MIT", PAGES),
    "xorg-docs": DebianPackage("MIT", PAGES),
    "libhdf5-doc": DebianPackage("BSD-3-Clause (HDF5)", PAGES),
    "openmpi-doc": DebianPackage("BSD-3-Clause", PAGES),
    "zsh-doc": DebianPackage("MIT-like (zsh)", PAGES),
    "nodejs-doc": DebianPackage("MIT", MARKDOWN),
    "libcurl4-doc": DebianPackage("curl (MIT-like)", MARKDOWN),
    "lighttpd-doc": DebianPackage("BSD-3-Clause", TEXTS),
    "dict-jargon": DebianPackage("Public domain", DICTIONARY),
    "dict-devil": DebianPackage("Public domain", DICTIONARY),
    "wordnet-base": DebianPackage("WordNet (BSD-like)", WORDNET),
}

PYTHON_PACKAGES = tuple(pathlib.Path(__file__).with_name("python_packages.txt").read_text().split())
