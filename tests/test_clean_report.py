"`lotus-nb clean` finds what was planted and nothing else, names what it cannot read, shows names as names, and never touches an image."
import importlib.util
import io
import json
import os
import re
import struct
import time
import zlib

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from test_cleaning import encoded
from typer.testing import CliRunner

import lotus_nb.clean_report as module
import lotus_nb.cleaning as cleaning
from lotus_nb.clean_report import class_counts, clean_report, default_order, find_files, list_pairs, plot_class_counts, plot_pairs, read_order
from lotus_nb.cleaning import MUFAC_ORDER, clean_splits, hash_images, mufac_files, read_table
from lotus_nb.cli import app
from lotus_nb.data.core import read_positions

FULL = pytest.mark.skipif(not os.environ.get('LOTUS_FULL_SIZE'), reason='minutes at full size: set LOTUS_FULL_SIZE=1')
AGES = 'abcdefgh'


def picture(seed, size=128):
    "Noise, smooth below a twelfth of the picture: any two are unlike each other."
    x = np.random.default_rng(seed).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    return Image.fromarray(x).resize((size, size), Image.Resampling.BICUBIC)


def write_mufac(root, n, copies, size=128):
    "A tree in MUFAC's layout: `n` pictures, and copies of some (split, picture, quality or None for the very bytes, age class). Returns forget rows and groups."
    home = {s: ('forget', 'retain', 'val', 'test')[int(np.searchsorted((.07, .67, .83), s/n, 'right'))] for s in range(n)}
    rows, tables, groups = [*((home[s], s, None, AGES[s % 8]) for s in range(n)), *copies], {}, {}
    for k, (split, seed, quality, label) in enumerate(rows):
        part, name = 'train' if split in ('forget', 'retain') else split, f'{seed:06} {k:06}.jpg'
        (root/f'{part}_images').mkdir(parents=True, exist_ok=True)
        (root/f'{part}_images'/name).write_bytes(encoded(picture(seed, size), quality or 95))
        tables.setdefault(part, []).append((split == 'retain', f'F{k//4:05}', 'ABC'[k % 3], label, name))
        groups.setdefault(seed, []).append((split, f'{part}_images/{name}', label))
    for part, t in tables.items():
        lines = ['family_id,person_id,age_class,image_path', *(','.join(r[1:]) for r in sorted(t, key=lambda r: r[0]))]
        (root/f'custom_{part}_dataset.csv').write_text('\r\n'.join(lines))
    return sum(not r[0] for r in tables['train']), groups


def planted_copies(n, m, seed=0):
    "m copies: of the bytes, and re-encoded at qualities 85, 60 and 30; in any split, under any label; some pictures twice."
    rng = np.random.default_rng(seed)
    return [(('forget', 'retain', 'val', 'test')[rng.integers(4)], int(rng.integers(n)), (None, 85, 60, 30)[rng.integers(4)], AGES[rng.integers(8)]) for _ in range(m)]


def pairs_of(groups): return {tuple(sorted((a[:2], b[:2]))) for g in groups.values() for i, a in enumerate(g) for b in g[:i]}
def found(pairs): return {tuple(sorted([(p.split_a, p.file_a), (p.split_b, p.file_b)])) for p in pairs.itertuples()}


def check_planted(root, out, n, m, size=128):
    n_forget, groups = write_mufac(root, n, planted_copies(n, m), size)
    start = time.perf_counter()
    done = clean_report(root, out, n_forget=n_forget, radius=4, workers=2)
    seconds = time.perf_counter() - start
    want = pairs_of(groups)
    assert len(done.cleaned.frame) == n + m and found(done.pairs) == want and len(done.pairs) == len(want) >= m
    labels = {(s, f): l for g in groups.values() for s, f, l in g}
    assert len(done.left.conflicts) == sum(labels[a] != labels[b] for a, b in want)
    assert done.summary.loc['together', 'left'] == n and not len(done.left.near)                    # one of each picture stays
    left = pd.concat([pd.read_csv(f, dtype=str) for f in done.files if f.parent.name == 'splits'])
    assert sorted(left['file'].str.extract(r'/(\d{6})')[0].astype(int)) == list(range(n))
    return done, seconds


def test_exactly_the_planted_pairs(tmp_path):
    done, _ = check_planted(tmp_path/'faces', tmp_path/'out', 300, 60)
    assert not len(list_pairs(done.cleaned.frame[done.cleaned.frame['kept']], 6)[0])                # two bits to spare


@FULL
def test_twenty_thousand_in_a_minute(tmp_path):
    _, seconds = check_planted(tmp_path/'faces', tmp_path/'out', 18_000, 2_000)
    print(f'{seconds:.1f} s')
    assert seconds < 60


def test_a_smaller_radius_or_a_missing_part_is_seen(tmp_path, monkeypatch):
    "The check above can fail: re-encodings are not at distance 0, and pairs across splits are not within."
    with pytest.raises(AssertionError):
        monkeypatch.setattr(module, 'list_pairs', lambda frame, radius: list_pairs(frame, 0))
        check_planted(tmp_path/'a', tmp_path/'out a', 120, 40)
    with pytest.raises(AssertionError):
        monkeypatch.setattr(module, 'list_pairs', lambda frame, radius: (p := list_pairs(frame, radius))._replace(pairs=p.pairs[p.pairs['kind'] == 'within']))
        check_planted(tmp_path/'b', tmp_path/'out b', 120, 40)


def check_corrupt(root, out, n, bad):
    "Bad ones among n, all named; the rest is processed."
    good = [encoded(picture(s, 32), 90) for s in range(50)]
    broken = [b'', b'words', good[0][:200], b'\x89PNG\r\n\x1a\n' + bytes(30), b'GIF89a' + b'\xff'*20]
    for i in range(n):
        folder = root/('train', 'test')[i % 2]/f'{i % 7}'
        folder.mkdir(parents=True, exist_ok=True)
        (folder/f'{i:06}.jpg').write_bytes(broken[i//(n//bad) % 5] if i % (n//bad) == 0 else good[i % 50])
    start = time.perf_counter()
    done = clean_report(root, out, workers=2)
    seconds = time.perf_counter() - start
    named = read_table(out/'unreadable.csv', ('file', 'error'))
    assert len(named) == bad == done.summary.loc['together', 'unreadable'] and (named['error'] != '').all()
    assert sorted(named['file'].str[-10:-4].astype(int)) == list(range(0, n, n//bad))
    assert done.summary.loc['together', 'images'] == n and f'Files that could not be read, and are in no clean list: {bad:,}.' in done.notes
    page = (out/'report.html').read_text()
    assert f'Unreadable: {bad:,}' in page and (bad <= 50 or f'{bad - 50:,} more are in unreadable.csv.' in page) and len(page) < 2_000_000
    return seconds


def test_corrupt_files_are_all_named(tmp_path): check_corrupt(tmp_path/'set', tmp_path/'out', 1000, 100)


@FULL
def test_ten_thousand_corrupt_among_a_hundred_thousand(tmp_path): print(f"{check_corrupt(tmp_path/'set', tmp_path/'out', 100_000, 10_000):.0f} s")


# Odd files.

def png_header(width, height):
    def chunk(name, data): return struct.pack('>I', len(data)) + name + data + struct.pack('>I', zlib.crc32(name + data))
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)) + chunk(b'IDAT', zlib.compress(bytes(100))) + chunk(b'IEND', b'')


def test_every_kind_of_bad_input_is_named_or_read(tmp_path, monkeypatch):
    root = tmp_path/'set'
    (root/'train'/'x').mkdir(parents=True)
    def put(name, data): (root/'train'/'x'/name).write_bytes(data)
    def save(im, form, **kw): f = io.BytesIO(); im.save(f, form, **kw); return f.getvalue()
    im = [picture(s, 64) for s in range(20)]
    turned = Image.Exif()
    turned[0x0112] = 6
    put('zero.jpg', b'')
    put('cut.jpg', encoded(im[0], 90)[:900])
    put('cut.png', save(im[1], 'PNG')[:2000])
    put('bomb.png', png_header(60_000, 60_000))
    put('huge.png', png_header(12_000, 8_000))
    put('wrong name.jpg', save(im[2], 'PNG'))
    put('wrong name.png', encoded(im[3], 90))
    put('no suffix', encoded(im[4], 90))
    put('cmyk.jpg', save(im[5].convert('CMYK'), 'JPEG'))
    put('deep.png', save(Image.fromarray(np.asarray(im[6].convert('L')).astype(np.uint16)*257), 'PNG'))
    put('moving.gif', save(im[7], 'GIF', save_all=True, append_images=[im[8]]))
    put('turned.jpg', save(im[9].rotate(90), 'JPEG', exif=turned))
    put('clear.png', save(im[10].convert('RGBA'), 'PNG'))
    with open(os.fsencode(root/'train'/'x') + b'/\xff\xfe.jpg', 'wb') as f: f.write(encoded(im[11], 90))
    put('a\nb.jpg', encoded(im[12], 90))
    os.makedirs(os.fsencode(root/'train') + b'/class \xfc')
    with open(os.fsencode(root/'train') + b'/class \xfc/1.jpg', 'wb') as f: f.write(encoded(im[13], 90))
    (tmp_path/'secret.jpg').write_bytes(encoded(im[14], 90))
    (root/'train'/'x'/'link.jpg').symlink_to(tmp_path/'secret.jpg')
    (root/'test').symlink_to(tmp_path)
    (root/'locked').mkdir()
    walk = os.walk
    def locked(top, onerror=None, **kw):                                     # as for a user who may not read it
        for folder, inner, files in walk(top, onerror=onerror, **kw):
            if os.path.basename(folder) == 'locked': (onerror or print)(PermissionError(13, 'Permission denied', folder))
            else: yield folder, inner, files
    monkeypatch.setattr(os, 'walk', locked)
    done = clean_report(root, tmp_path/'out')
    f = done.cleaned.frame.set_index('file')
    errors, notes = f['error'][f['error'] != ''].to_dict(), f['note'][f['note'] != ''].to_dict()
    assert set(errors) == {'train/x/zero.jpg', 'train/x/cut.jpg', 'train/x/cut.png', 'train/x/bomb.png', 'train/x/huge.png', 'train/x/link.jpg', 'test', 'locked'}
    assert 'folder cannot be read (Permission denied)' in errors['locked'] and 'not followed' in errors['test'] and 'refused' in errors['train/x/link.jpg']
    assert 'pixels' in errors['train/x/huge.png'] and 'pixels' in errors['train/x/bomb.png'] and errors['train/x/zero.jpg'] == 'the file is empty'
    assert {k[8:]: v for k, v in notes.items()} == {'cmyk.jpg': 'CMYK', 'deep.png': 'more than 8 bits', 'moving.gif': 'first of 2 frames',
                                                   'turned.jpg': 'turned as its EXIF tag says', 'clear.png': 'transparent'}
    assert f['kept'].sum() == 11 == len(f) - len(errors)
    again = read_table(tmp_path/'out'/'splits'/'train.csv', ('file', 'split'))                      # names come back as the file system has them
    assert set(again['file']) == set(f.index[f['kept']]) and 'train/x/\udcff\udcfe.jpg' in set(again['file'])
    back = clean_report(root, tmp_path/'out 2', table=tmp_path/'out'/'splits'/'train.csv')
    assert back.summary['left'].tolist() == [11]
    assert CliRunner().invoke(app, ['clean', str(root), '--out', str(tmp_path/'out 3')]).exit_code == 0


def test_lists_that_leave_the_folder_are_refused_and_named(tmp_path):
    (tmp_path/'set').mkdir()
    for n in ('set/in.png', 'out.png'): picture(0).save(tmp_path/n)
    (tmp_path/'t.csv').write_text(f'file,split\nin.png,train\n../out.png,train\n{tmp_path}/out.png,test\n./in.png,test\nset\0.png,test\ngone.png,test\n')
    done = clean_report(tmp_path/'set', tmp_path/'r', table=tmp_path/'t.csv')
    errors = done.cleaned.frame['error'].tolist()
    assert [e[:7] for e in errors] == ['', 'refused', 'refused', '', 'embedde', 'there i'] and len(read_table(tmp_path/'r'/'unreadable.csv', ('file',))) == 4
    assert len(done.pairs) == 1 and 'out.png' in (tmp_path/'r'/'report.html').read_text()


def test_images_are_only_read(tmp_path):
    n_forget, _ = write_mufac(tmp_path/'faces', 60, planted_copies(60, 20))
    state = lambda: {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in (tmp_path/'faces').rglob('*') if p.is_file()}
    before = state()
    clean_report(tmp_path/'faces', tmp_path/'out', n_forget=n_forget, radius=4)
    assert state() == before


# The page.

NASTY = '<img src=x onerror=alert(1)>&"\'.jpg'


def evil_page(tmp_path):
    root = tmp_path/'evil'
    for split in ('train', 'test'):
        (root/split/'<b>').mkdir(parents=True)
        (root/split/'<b>'/NASTY).write_bytes(encoded(picture(1), 90))
    (root/'test'/'<b>'/'<i>.jpg').write_bytes(b'')
    return (clean_report(root, tmp_path/'evil report', splits=[('<u>', 'train'), ('test', 'test')]), (tmp_path/'evil report'/'report.html').read_text())[1]


def tags(page): return set(re.findall(r'<([a-z0-9]+)', page))
PLAIN_TAGS = {'html', 'head', 'meta', 'title', 'style', 'body', 'h1', 'h2', 'p', 'div', 'table', 'tr', 'td', 'th', 'img', 'br', 'small', 'details', 'summary', 'figure', 'figcaption'}


def test_names_are_escaped(tmp_path):
    page = evil_page(tmp_path)
    assert tags(page) <= PLAIN_TAGS and 'onerror=alert(1)&gt;' in page and '<img src=x' not in page
    assert not re.search(r'<[^>]*(src|href)="?(?!"?data:)', page)                    # nothing from elsewhere


def test_a_page_without_escapes_is_seen(tmp_path, monkeypatch):
    monkeypatch.setattr(module, '_safe', str)
    assert not tags(evil_page(tmp_path)) <= PLAIN_TAGS


def test_pictures_are_bounded(tmp_path):
    (tmp_path/'set'/'train').mkdir(parents=True)
    for i in range(40): (tmp_path/'set'/'train'/f'{i:02}.jpg').write_bytes(encoded(picture(i//2, 400), 90))
    clean_report(tmp_path/'set', tmp_path/'out', pictures=5)
    page = (tmp_path/'out'/'report.html').read_text()
    assert page.count('<img alt=""') == 10 and '15 more are in pairs.csv.' in page and len(read_table(tmp_path/'out'/'pairs.csv', ())) == 20
    sizes = [Image.open(io.BytesIO(__import__('base64').b64decode(d))).size for d in re.findall(r'jpeg;base64,([^"]+)', page)]
    assert max(max(s) for s in sizes) == 96


def test_thousands_of_copies_are_listed_beside_the_one_that_stays(tmp_path):
    data = encoded(picture(0, 16), 90)
    for split, n in dict(train=4500, test=3000).items():
        (tmp_path/'set'/split).mkdir(parents=True)
        for i in range(n): (tmp_path/'set'/split/f'{i:05}.jpg').write_bytes(data)
    done = clean_report(tmp_path/'set', tmp_path/'out')
    assert done.summary['left'].to_dict() == {'test': 1, 'train': 0, 'together': 1} and len(done.pairs) == 7499
    assert any('more pairs than a table should hold' in n for n in done.notes)


def test_near_pairs_that_stay_are_listed_beside_thousands_of_copies(tmp_path, monkeypatch):
    "Copies of one picture crowd nothing else out, and near pairs step back only as far as they must."
    frame = pd.DataFrame({'file': [f'{i:04}' for i in range(130)], 'split': ['train']*100 + ['test']*30, 'width': 1, 'height': 1, 'label': 'x'})
    frame['hash'] = pd.array([7]*90 + [7 ^ 1 << k for k in range(10)] + [1 << 40 | k for k in range(30)], dtype='UInt64')
    done = cleaning.clean_splits(frame, [('train', 'test')], 0)
    kept = frame[done.frame['kept']]
    def most_pairs(f, r): return max(len(find(f, r)) for find in (cleaning.find_duplicates, cleaning.find_leaks))
    assert most_pairs(kept, 1) < most_pairs(kept, 2) < most_pairs(kept, 3) < most_pairs(kept, 4) < most_pairs(frame, 4)
    for near in (4, 2, 1):
        found = list_pairs(done.frame, 4, most_pairs(kept, near))
        stay = found.pairs[found.pairs['stays'] == 'both']
        assert not found.whole and found.near == near
        want = pd.concat([f(kept, near) for f in (cleaning.find_duplicates, cleaning.find_leaks)])
        assert set(zip(stay['file_a'], stay['file_b'])) == set(zip(want['file_a'], want['file_b'])) and len(stay)
        assert len(found.pairs) - len(stay) == 89
    real = cleaning.find_leaks
    monkeypatch.setattr(cleaning, 'find_leaks', lambda f, r, **kw: real(f, r, **kw) if r < 3 else (_ for _ in ()).throw(cleaning.TooManyPairs('')))
    assert cleaning.clean_splits(frame, [('train', 'test')], 0).looked == 2


def test_nothing_readable_is_a_report_too(tmp_path):
    for split in ('train', 'test'):
        (tmp_path/'set'/split/'x').mkdir(parents=True)
        for i in range(3): (tmp_path/'set'/split/'x'/f'{i}.jpg').write_bytes(b'words')
    for _ in range(2):                                                       # the second finds the first one's tables
        done = clean_report(tmp_path/'set', tmp_path/'out')
        assert done.summary.loc['together', ['images', 'unreadable', 'left']].tolist() == [6, 6, 0]
        assert len(read_table(tmp_path/'out'/'unreadable.csv', ('file',))) == 6 and (tmp_path/'out'/'report.html').exists()
    with pytest.raises(ValueError, match='no image could be read'): plot_class_counts(*class_counts(done.cleaned.frame))


def test_persons_and_families_are_listed_whole(tmp_path):
    (tmp_path/'set').mkdir()
    rows = []
    for i in range(120):                                                     # 60 persons in both splits, 2 copies across families
        picture(i if i != 119 else 0).save(tmp_path/'set'/f'{i}.png')
        rows.append(f"{i}.png,{('train', 'test')[i//60]},p{i % 60},f{i % 60}")
    (tmp_path/'t.csv').write_text('file,split,person,family\n' + '\n'.join(rows))
    clean_report(tmp_path/'set', tmp_path/'out', table=tmp_path/'t.csv')
    families = read_table(tmp_path/'out'/'families.csv', ('family_a', 'family_b'))
    assert len(read_table(tmp_path/'out'/'people.csv', ('person', 'train', 'test'))) == 59 and families[['file_a', 'file_b']].values.tolist() == [['119.png', '0.png']]
    assert '9 more are in people.csv.' in (tmp_path/'out'/'report.html').read_text()


def test_no_table_is_written_over(tmp_path):
    (tmp_path/'set').mkdir()
    for i in range(3): picture(i).save(tmp_path/'set'/f'{i}.png')
    text = 'file,split\n0.png,train\n1.png,test\n'
    for table in (tmp_path/'set'/'all.csv', tmp_path/'set'/'t.csv'):
        table.write_text(text)
        with pytest.raises(ValueError, match='could write over it'): clean_report(tmp_path/'set', tmp_path/'set', table=table)
        assert table.read_text() == text
    (tmp_path/'set'/'t.csv').unlink()
    with pytest.raises(ValueError, match="holds all.csv, and no report of an earlier run"): clean_report(tmp_path/'set', tmp_path/'set')
    assert (tmp_path/'set'/'all.csv').read_text() == text


def test_regions_find_pictures_whose_edges_were_cut(tmp_path):
    "Where phash does not; the page, the lists and a second run take tuples of hashes."
    (tmp_path/'set'/'train').mkdir(parents=True)
    (tmp_path/'set'/'test').mkdir()
    for i in range(4):
        picture(i, 160).save(tmp_path/'set'/'train'/f'{i}.png')
        picture(i, 160).crop((8, 8, 152, 152)).save(tmp_path/'set'/'test'/f'{i}.png')
    plain = clean_report(tmp_path/'set', tmp_path/'plain', radius=8, look=8)
    for _ in range(2): done = clean_report(tmp_path/'set', tmp_path/'out', radius=8, look=8, kind='crop_resistant')
    found = {(a[6:], b[5:]) for a, b in zip(done.pairs['file_b'], done.pairs['file_a'])}
    assert len(plain.pairs) < len({(f'{i}.png',)*2 for i in range(4)} & found) >= 3, (plain.pairs, found)
    assert done.summary.loc['train', 'left'] <= 1 and 'gives way' in (tmp_path/'out'/'report.html').read_text()
    assert (done.cleaned.frame['twin'] != '').sum() == (~done.cleaned.frame['kept']).sum() > 0


def test_files_without_a_split_are_named(tmp_path):
    (tmp_path/'set').mkdir()
    for i in range(3): picture(i).save(tmp_path/'set'/f'{i}.png')
    (tmp_path/'t.csv').write_text('file,split\n0.png,train\n1.png,test\n')
    done = clean_report(tmp_path/'set', tmp_path/'set'/'report', table=tmp_path/'t.csv')
    assert 'Files below the folder that no split has: 1.' in done.notes
    assert read_table(tmp_path/'set'/'report'/'unlisted.csv', ('file',))['file'].tolist() == ['2.png']


def test_images_beside_the_report_or_under_other_names_are_named(tmp_path):
    "Only the report's own folder is left out, not all that lies above it."
    (tmp_path/'set'/'a'/'b').mkdir(parents=True)
    for n in ('0.png', '1.png', 'a/2.png', 'a/b/3.png', '.hidden.png'): picture(0).save(tmp_path/'set'/n)
    (tmp_path/'set'/'a'/'photo.txt').write_bytes((tmp_path/'set'/'0.png').read_bytes())
    (tmp_path/'t.csv').write_text('file,split\n0.png,train\n1.png,test\n')
    for _ in range(2):
        done = clean_report(tmp_path/'set', tmp_path/'set'/'a'/'b'/'report', table=tmp_path/'t.csv')
        (tmp_path/'set'/'a'/'b'/'report'/'left.png').write_bytes(b'of the report')
        named = read_table(tmp_path/'set'/'a'/'b'/'report'/'unlisted.csv', ('file', 'error')).set_index('file')['error']
        assert list(named.index) == ['.hidden.png', 'a/2.png', 'a/b/3.png', 'a/photo.txt'] and 'hidden' in named['.hidden.png']
        assert 'Files below the folder that no split has: 4.' in done.notes


def test_names_of_splits_cannot_leave_the_folder(tmp_path):
    (tmp_path/'set').mkdir()
    for i in range(3): picture(i).save(tmp_path/'set'/f'{i}.png')
    (tmp_path/'t.csv').write_text('file,split\n0.png,../../evil\n1.png,a/b\n2.png,a b\n')
    done = clean_report(tmp_path/'set', tmp_path/'out', table=tmp_path/'t.csv')
    assert all(f.resolve().is_relative_to((tmp_path/'out').resolve()) for f in done.files) and len({f.name for f in done.files}) == len(done.files)
    assert sum(len(read_table(f, ('file',))) for f in done.files if f.parent.name == 'splits') == 3


# Order.

@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(['train', 'val', 'test', 'forget', 'retain', 'web', 'extra', 'Test', 'valid']), unique=True))
def test_any_splits_have_an_order(splits):
    steps = default_order(splits)
    assert all(set(s) <= set(splits) and len(s) == len(set(s)) > 1 for s in steps) and default_order(splits[::-1]) == steps
    if {'forget', 'retain', 'val', 'test'} == set(splits): assert steps[:3] == MUFAC_ORDER
    if not {'forget', 'retain'} <= set(splits):                              # every two splits meet once, and test stays
        assert sum(len(s) - 1 for s in steps) == len(splits)*(len(splits) - 1)//2 and all(s[0] != 'test' or set(s) == {'test', 'Test'} for s in steps)


def test_the_test_set_stays_whole_before_training(tmp_path):
    for split in ('train', 'val', 'test'):
        (tmp_path/'set'/split).mkdir(parents=True)
        for i in range(2): picture(i).save(tmp_path/'set'/split/f'{i}.png')
    done = clean_report(tmp_path/'set', tmp_path/'out')
    assert done.summary['left'].to_dict() == {'test': 2, 'train': 0, 'val': 0, 'together': 2}
    done = clean_report(tmp_path/'set', tmp_path/'out', order=read_order('test:train,val; val:train'))
    assert done.summary['left'].to_dict() == {'test': 0, 'train': 2, 'val': 0, 'together': 2}


# Commands.

def run(*args, width=100): return CliRunner().invoke(app, ['clean', *map(str, args)], env={'COLUMNS': str(width)})


@pytest.mark.parametrize('width', [40, 80, 200])
def test_the_table_fits(tmp_path, width):
    (tmp_path/'set').mkdir()
    for i in range(3): picture(i).save(tmp_path/'set'/f'{i}.png')
    done = run(tmp_path/'set', '--out', tmp_path/'out', width=width)
    assert done.exit_code == 0 and 'unreadable' in done.output
    assert max(len(l) for l in done.output.splitlines() if not l.startswith(str(tmp_path))) <= max(40, width)
    for f in ('summary.csv', 'pairs.csv', 'unreadable.csv', 'report.html', 'splits/all.csv'): assert str(tmp_path/'out'/f) in done.output


def test_a_stopped_run_goes_on(tmp_path, monkeypatch):
    (tmp_path/'set').mkdir()
    for i in range(1100): picture(i, 16).save(tmp_path/'set'/f'{i}.png')
    opened, real = [], cleaning.open_picture
    def stop(*a):
        opened.append(1)
        if len(opened) > 1050: raise KeyboardInterrupt
        return real(*a)
    monkeypatch.setattr(cleaning, 'open_picture', stop)
    done = run(tmp_path/'set', '--out', tmp_path/'out')
    assert done.exit_code == 130 and 'The same command goes on from here.' in done.output and not (tmp_path/'out'/'report.html').exists()
    opened.clear()
    monkeypatch.setattr(cleaning, 'open_picture', lambda *a: opened.append(1) or real(*a))
    assert run(tmp_path/'set', '--out', tmp_path/'out').exit_code == 0 and len(opened) == 100


# Readers.

def no_surrogates(text): return text.encode('utf-8', 'replace').decode()
cells = st.text(max_size=6) | st.sampled_from(['0.png', '1.png', '../2.png', 'train', 'test', '', 'file', 'split', '"', 'a"b', '/'])
tables = st.lists(st.lists(cells, max_size=4), max_size=6).map(lambda rows: 'file,split,label\n' + '\n'.join(map(','.join, rows))).map(no_surrogates).map(str.encode) | st.binary(max_size=120)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tables)
def test_any_table_is_cleaned_or_refused(tmp_path, data):
    "Every row is in the result; or a sentence says what is wrong, and nothing is written."
    root, out, table = tmp_path/'set', tmp_path/'out', tmp_path/'t.csv'
    root.mkdir(exist_ok=True)
    for i in range(2):
        if not (root/f'{i}.png').exists(): picture(i, 32).save(root/f'{i}.png')
    table.write_bytes(data)
    try: done = clean_report(root, out, table=table, workers=1)
    except ValueError as e: assert str(table) in str(e) or re.match("No images are named: '|Unknown split '", str(e)), e
    else:
        rows = read_table(table, ('file', 'split'))
        assert done.cleaned.frame['file'].tolist() == rows['file'].tolist() and len(rows) == done.summary['images'].iloc[-1]
        bad = done.cleaned.frame['error'] != ''
        assert len(read_table(out/'unreadable.csv', ('file',)).drop_duplicates()) <= bad.sum() and (done.cleaned.frame['kept'] | (done.cleaned.frame['why'] != '')).all()


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet='ab:,; \n"é', max_size=20) | st.text(max_size=20))
def test_any_order_is_read_or_refused(text):
    try: steps = read_order(text)
    except ValueError as e: assert 'must have the form' in str(e)
    else: assert all(len(s) > 1 and all(s) for s in steps) and read_order('; '.join(f"{s[0]}:{','.join(s[1:])}" for s in steps)) == steps


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=80), st.integers(0, 400))
def test_any_cache_is_used_or_passed_over(tmp_path, data, at):
    "Bytes thrown into a cache change no hash."
    folder = tmp_path/'set'
    if not folder.exists():
        folder.mkdir()
        for i in range(3): picture(i, 32).save(folder/f'{i}.png')
    want = hash_images(folder, cache=tmp_path/'.whole')
    whole = (tmp_path/'.whole').read_bytes()
    head = whole.index(b'\n') + 1
    (tmp_path/'.torn').write_bytes(whole[:head + at] + data + whole[head + at:])
    got = hash_images(folder, cache=tmp_path/'.torn')
    assert got['error'].eq('').all()
    touched = {l for l in (tmp_path/'.torn').read_bytes().splitlines()} - set(whole.splitlines())
    if not any(re.fullmatch(rb'.+\t[0-9a-f]{32}\t[0-9a-f]{16}\t\d+\t\d+\t[^\t]*', l) for l in touched): assert got.equals(want)


def test_a_line_edited_by_hand_is_hashed_again(tmp_path):
    for i in range(3): picture(i, 32).save(tmp_path/f'{i}.png')
    want = hash_images(tmp_path, cache=tmp_path/'.c')
    text = (tmp_path/'.c').read_text()
    for bad in ('\tx\t', '\t-1\t', '\t1e3\t', '\t\t', '\t' + '9'*30 + '\t'):
        (tmp_path/'.c').write_text(text.replace('\t32\t', bad, 1))
        assert hash_images(tmp_path, cache=tmp_path/'.c').equals(want), bad


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=150) | st.lists(st.integers(-9, 10**20) | st.text(max_size=4), max_size=9).map(lambda v: no_surrogates('\n'.join(map(str, v))).encode()), st.sampled_from(['.txt', '.npy']))
def test_any_list_of_positions_is_read_or_refused(tmp_path, data, suffix):
    file = tmp_path/f'list{suffix}'
    file.write_bytes((b'\x93NUMPY\x01\x00' if suffix == '.npy' else b'') + data)
    try: read_positions(file)
    except ValueError as e: assert str(file) in str(e)


def test_unknown_classes_are_named(tmp_path):
    n_forget, _ = write_mufac(tmp_path, 30, [])
    table = tmp_path/'custom_val_dataset.csv'
    table.write_text(table.read_text().replace(',f,', ',bb,').replace(',g,', ',i,'))
    with pytest.raises(ValueError, match="Unknown age class '(bb|i)'.*custom_val_dataset.csv"): mufac_files(tmp_path, n_forget)


def test_a_step_against_itself_is_refused(tmp_path):
    picture(0).save(tmp_path/'0.png')
    with pytest.raises(ValueError, match='gives way to itself'): clean_report(tmp_path, tmp_path/'out', order=[('all', 'all')])


def test_without_imagehash_a_sentence_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__('sys').modules, 'imagehash', None)
    picture(0).save(tmp_path/'0.png')
    done = run(tmp_path, '--out', tmp_path/'out')
    assert done.exit_code == 2 and "pip install 'lotus_nb[clean]'" in done.output


# Stored numbers.

def test_published_counts_add_up():
    t = pd.read_csv(ROOT/'results'/'published_mufac.csv')
    sums = t[t['class'].notna()].groupby(['quantity', 'split'])['value'].sum().to_dict()
    want = {'images raw': (1500, 8525, 1539, 1504), 'images clean': (1065, 5513, 1211, 1118), 'images clean, authors': (1062, 5513, 1211, 1118)}
    assert sums == {(q, s): n for q, ns in want.items() for s, n in zip(('forget', 'retain', 'val', 'test'), ns)} and t['source'].str.len().min() > 20


def figures_tool():
    spec = importlib.util.spec_from_file_location('figures_tool', ROOT/'tools'/'figures.py')
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    return tool


def test_stored_figures_say_where_they_come_from():
    tool = figures_tool()
    for name in ('fig3', 'fig4', 'fig5'):
        stored = json.loads((ROOT/'results'/'figures'/f'{name}.json').read_text())
        assert set(stored['sets']) == {'cifar10', 'cifar100'} and {'command', 'hash', 'when', 'versions'} <= set(stored['provenance'])
    for s in stored['sets'].values():
        counts = np.array(s['counts'])
        assert counts.shape == (len(tool.SEEDS), 65) and (counts.sum(1) == 225_000_000).all() and not counts[:, 1::2].any()
        assert len(set(s['forget_ids'])) == len(tool.SEEDS)


def test_plots_draw_any_names(tmp_path):
    picture(0).save(tmp_path/'$x_1$.png')
    pairs = pd.DataFrame(dict(file_a=['$x_1$.png'], split_a=['$a^$'], file_b=['$x_1$.png'], split_b=['b'], distance=[0]))
    plot_pairs(pairs, tmp_path).canvas.draw()
    before = pd.DataFrame({'$a^$': [1, 2]}, index=['$\\frac$', 'b'])
    module.plot_class_counts(before, before).canvas.draw()
