"Cleaning finds what was planted in a tree of MUFAC's layout, exactly; and neither odd files nor odd hashes stop it."
import io
import os
import shutil

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import lotus_nb.cleaning as cleaning
from lotus_nb.cleaning import clean_splits, distance_histogram, find_duplicates, find_leaks, hash_images, mufac_files, pairs_within, read_table, shared_across
from lotus_nb.core import listening


def picture(seed, size=128):
    "A smooth random field: two of them are unlike each other."
    x = np.random.default_rng(seed).integers(0, 256, (7, 7, 3), dtype=np.uint8)
    return Image.fromarray(x).resize((size, size), Image.Resampling.BICUBIC)


def encoded(im, quality):
    f = io.BytesIO()
    im.save(f, 'JPEG', quality=quality)
    return f.getvalue()


# The tree: for each split, pictures of its own, and then copies: (split, seed of the picture, quality or None for the very bytes, age class).
OWN = {'forget': range(0, 30), 'retain': range(30, 90), 'val': range(90, 110), 'test': range(110, 130)}
COPIES = [('forget', 3, None, 'a'), ('forget', 3, 60, 'a'), ('retain', 40, 75, 'a'), ('retain', 41, None, 'b'),          # within; the last under another label
          ('retain', 5, None, 'a'), ('retain', 6, 50, 'a'), ('retain', 6, 70, 'a'),                                      # forget in retain
          ('test', 91, None, 'a'), ('test', 92, 80, 'c'),                                                               # val in test
          ('test', 8, 60, 'a'), ('test', 50, None, 'a'), ('test', 51, 85, 'a')]                                         # train in test


@pytest.fixture(scope='module')
def mufac(tmp_path_factory):
    "Folder, frame with hashes, and the planted groups: picture → files."
    root, tables, groups = tmp_path_factory.mktemp('mufac'), {}, {}

    def put(split, seed, data, label, name):
        part = 'train' if split in ('forget', 'retain') else split
        (root/f'{part}_images').mkdir(exist_ok=True)
        (root/f'{part}_images'/name).write_bytes(data)
        tables.setdefault(part, []).append((split == 'retain', f'F{seed//4:04}', 'ABC'[seed % 3], label, name))
        groups.setdefault(seed, []).append((split, f'{part}_images/{name}'))
    for split, seeds in OWN.items():
        for s in seeds: put(split, s, encoded(picture(s), 95), 'a', f'{s:03}.jpg')
    for n, (split, seed, quality, label) in enumerate(COPIES):
        put(split, seed, encoded(picture(seed), quality or 95), label, f'{seed:03} again {n}.jpg')
    for part, rows in tables.items():
        lines = ['family_id,person_id,age_class,image_path', *(','.join(r[1:]) for r in sorted(rows, key=lambda r: r[0]))]
        (root/f'custom_{part}_dataset.csv').write_text('\r\n'.join(lines))
    n_forget = sum(s == 'forget' for g in groups.values() for s, _ in g)
    return root, hash_images(mufac_files(root, n_forget), root=root, workers=2), {k: g for k, g in groups.items() if len(g) > 1}


def planted(groups, within):
    return {tuple(sorted((a, b))) for g in groups.values() for i, a in enumerate(g) for b in g[:i] if (a[0] == b[0]) == within}


def found(pairs): return {tuple(sorted([(p.split_a, p.file_a), (p.split_b, p.file_b)])) for p in pairs.itertuples()}


def test_exactly_the_planted_pairs_are_found(mufac):
    _, frame, groups = mufac
    assert (frame['error'] == '').all() and len(frame) == 130 + len(COPIES)
    for radius in (4, 6): assert found(find_duplicates(frame, radius)) == planted(groups, True) and found(find_leaks(frame, radius)) == planted(groups, False)
    assert find_leaks(frame, 4).equals(find_leaks(frame.sample(frac=1, random_state=1), 4))


def test_the_paper_s_order(mufac):
    _, frame, _ = mufac
    done = clean_splits(frame, radius=4)
    steps = done.steps.set_index(['split', 'step'])['dropped'].to_dict()
    assert steps == {('forget', 'twin in retain'): 2, ('val', 'twin in test'): 2, ('test', 'twin in forget or retain'): 3, ('forget', 'twin in the same split'): 2,
                     ('retain', 'twin in the same split'): 3, ('test', 'twin in the same split'): 0, ('val', 'twin in the same split'): 0}
    left = done.frame[done.frame['kept']]
    assert left.groupby('split').size().to_dict() == {'forget': 28, 'retain': 62, 'test': 22, 'val': 18}
    assert not len(find_leaks(left, 6)) and not len(find_duplicates(left, 6)) and not len(done.leaks)
    assert set(zip(done.conflicts['label'], done.conflicts['twin_label'])) == {('a', 'c'), ('a', 'b')}
    assert set(done.frame['file']) == set(frame['file']) and done.frame['file'].tolist() == frame['file'].tolist()
    dropped = done.frame[~done.frame['kept']]
    assert (dropped['twin'] != '').all() and len(dropped) == done.steps['dropped'].sum()


@pytest.mark.parametrize('keep', ['name', 'pixels'])
def test_survivors_do_not_depend_on_the_order_of_a_folder(mufac, keep):
    frame = mufac[1]
    one, other = (clean_splits(f, radius=4, keep=keep).frame.sort_values('file', ignore_index=True) for f in (frame, frame.sample(frac=1, random_state=2)))
    assert one.equals(other)


def test_people_in_two_splits_are_counted(mufac):
    done = clean_splits(mufac[1], radius=4)
    people = shared_across(done.frame, 'person')
    assert len(people) and ((people > 0).sum(axis=1) > 1).all()


# Hashes.

values = st.integers(0, 2**64 - 1)


@settings(max_examples=150, deadline=None)
@given(st.lists(values, max_size=8), st.lists(st.tuples(st.integers(0, 7), st.lists(st.integers(0, 63), max_size=7)), max_size=40), st.integers(0, 8), st.booleans())
def test_all_pairs_are_found_on_any_clusters(centres, members, radius, cross):
    x = np.array([*centres, *(centres[c % len(centres)] ^ sum(1 << b for b in set(bits)) for c, bits in members if centres)], np.uint64)
    a, b = (x[:len(x)//2], x[len(x)//2:]) if cross else (x, x)
    near = np.bitwise_count(a[:, None] ^ b) <= radius
    want = np.argwhere(near if cross else np.triu(near, 1))
    got = pairs_within(a, b if cross else None, radius)
    assert got.index.tolist() == want.tolist() and got.distance.tolist() == np.bitwise_count(a[want[:, 0]] ^ b[want[:, 1]]).tolist()
    for k in (1, 2):
        u, bands = np.unique(a), [list(range(m, 64, radius + k)) for m in range(radius + k)]
        found = [p for block in cleaning._by_bands(u, u, radius, True, bands, k) for p in zip(*(w.tolist() for w in block))]
        assert len(found) == len(set(found)) == int(np.triu(np.bitwise_count(u[:, None] ^ u) <= radius, 1).sum())


def test_a_hundred_thousand_with_planted_twins():
    "Here the plan chooses bands, and the answer is known."
    rng = np.random.default_rng(0)
    x = rng.integers(0, 2**64, 100_000, dtype=np.uint64)
    for radius in range(7):
        flips = np.array([sum(1 << int(b) for b in rng.choice(64, radius, replace=False)) for _ in range(300)], np.uint64)
        both = np.concatenate([x, x[:300] ^ flips])
        assert cleaning._plan(np.unique(both), np.unique(both), radius, True)[0] or not radius
        got = pairs_within(both, radius=radius)
        assert {(i, i + 100_000) for i in range(300)} <= set(map(tuple, got.index.tolist())) and (got.distance <= radius).all()
        assert len(got.index) <= 303                                           # chance pairs: 5e9·P(64 bits within 6), about .02


def test_one_hash_a_hundred_thousand_times():
    "Half of the files are black: pairs are refused, with the reason; cleaning goes through."
    frame = pd.DataFrame({'file': [f'{i:06}' for i in range(100_000)], 'split': 'train', 'hash': pd.array([0]*50_000 + [2**63 + i for i in range(50_000)], dtype='UInt64')})
    with pytest.raises(ValueError, match='one hash alone occurs 50,000 times'): find_duplicates(frame)
    assert clean_splits(frame, []).steps['left'].tolist() == [50_001]


def test_all_distances_are_counted():
    rng = np.random.default_rng(0)
    for n, m in ((0, 5), (1, 1), (17, 3), (100, 9001)):
        a, b = (rng.integers(0, 2**64, k, dtype=np.uint64) for k in (n, m))
        assert distance_histogram(a, b).tolist() == np.bincount(np.bitwise_count(a[:, None] ^ b).ravel(), minlength=65).tolist()


# Files.

def test_every_odd_file_is_named(tmp_path):
    "Corrupt files among good ones, names that are not UTF-8, links, folders: all in the table, none stops the rest."
    good = encoded(picture(0), 90)
    (tmp_path/'train').mkdir()
    for i in range(50): (tmp_path/'train'/f'{i:02}.jpg').write_bytes(good[:20*i] if i % 2 else good)
    odd = {'png': b'\x89PNG\r\n\x1a\n' + b'\0'*40, 'gif': b'GIF89a' + b'\xff'*30, 'bmp': b'BM' + b'\xff'*60, 'tif': b'II*\0\xff\xff\xff\x7f', 'txt.jpg': b'words'}
    for suffix, data in odd.items(): (tmp_path/'train'/f'odd.{suffix}').write_bytes(data)
    name = os.path.join(os.fsencode(tmp_path), b'train', b'\xff\xfe.jpg')
    with open(name, 'wb') as f: f.write(good)
    (tmp_path/'loop').symlink_to(tmp_path)
    (tmp_path/'train'/'nowhere.jpg').symlink_to(tmp_path/'gone.jpg')
    os.mkfifo(tmp_path/'train'/'pipe.jpg')
    seen = []
    with listening(lambda path, done, total: seen.append((path, done, total))): frame = hash_images(tmp_path, cache=tmp_path/'.cache')
    assert len(frame) == 50 + len(odd) + 4 and seen[-1] == (('hashing',), len(frame), len(frame))
    assert (frame['hash'].isna() == (frame['error'] != '')).all() and frame['hash'].notna().sum() >= 26
    errors = dict(zip(frame['file'], frame['error']))
    assert errors['train/01.jpg'] and errors['loop'] == 'a link to a folder is not followed' and errors['train/odd.txt.jpg'] == 'no image that can be recognised'
    assert errors['train/nowhere.jpg'] == 'there is no such file' and errors['train/pipe.jpg'] == 'not a regular file' and errors['train/\udcff\udcfe.jpg'] == ''
    assert len(clean_splits(frame, []).frame) == len(frame)


def test_a_torn_cache_is_mended(tmp_path):
    for i in range(3): picture(i).save(tmp_path/f'{i}.png')
    cache = tmp_path/'.hashes'
    first = hash_images(tmp_path, cache=cache)
    cache.write_bytes(cache.read_bytes()[:-30])
    assert hash_images(tmp_path, cache=cache).equals(first) and hash_images(tmp_path, cache=cache).equals(first)
    cache.write_bytes(cache.read_bytes() + b'\xff\t\n' + hash_images.__name__.encode() + b'\tx\tzz\n')
    assert hash_images(tmp_path, cache=cache).equals(first)
    assert not hash_images(tmp_path, 'dhash', cache=cache)['hash'].equals(first['hash'])


def test_a_known_image_is_not_decoded_again(tmp_path, monkeypatch):
    picture(0).save(tmp_path/'0.png')
    hash_images(tmp_path, cache=tmp_path/'.c')
    shutil.move(tmp_path/'0.png', tmp_path/'renamed.png')
    monkeypatch.setattr(cleaning, 'open_picture', None)
    assert hash_images(tmp_path, cache=tmp_path/'.c')['error'].tolist() == ['']


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200) | st.lists(st.lists(st.text(max_size=5), max_size=3), max_size=6).map(lambda rows: 'file,split\n'.encode() + '\n'.join(','.join(r) for r in rows).encode('utf-8', 'replace')))
def test_any_table_is_read_or_refused_with_a_reason(data):
    from tempfile import NamedTemporaryFile
    with NamedTemporaryFile(suffix='.csv') as f:
        f.write(data)
        f.flush()
        try: t = read_table(f.name, ['file', 'split'])
        except ValueError as e: assert f.name in str(e)
        else: assert {'file', 'split'} <= set(t)
