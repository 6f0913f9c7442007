"Packaging metadata comes from settings.ini; nbdev's own options live in pyproject.toml."
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
ini = ConfigParser(delimiters=['='])
ini.read(here/'settings.ini', encoding='utf-8')
cfg = ini['DEFAULT']
lib = cfg['lib_name']
licenses = {'apache2': 'Apache-2.0'}
statuses = ['1 - Planning', '2 - Pre-Alpha', '3 - Alpha', '4 - Beta', '5 - Production/Stable']

setup(
    license=licenses[cfg['license']],
    author=cfg['author'], author_email=cfg['author_email'],
    keywords=cfg['keywords'].split(),
    classifiers=['Development Status :: ' + statuses[int(cfg['status'])-1],
                 'Programming Language :: Python :: 3 :: Only'],
    packages=find_packages(include=[lib, lib+'.*']),     # without '.*' the wheel would lack every subpackage
    install_requires=cfg['requirements'].split(),
    extras_require={o: cfg[o+'_requirements'].split() for o in ('fastai', 'clean', 'dev', 'docs')},
    long_description=(here/'README.md').read_text(encoding='utf-8'), long_description_content_type='text/markdown',
    entry_points={'console_scripts': cfg['console_scripts'].split(),
                  'nbdev': [f'{lib}={lib}._modidx:d']},  # lets other nbdev projects link to our docs
)
