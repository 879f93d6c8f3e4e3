import shutil
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient
from sklearn.neighbors import NearestNeighbors

from app.__main__ import find_index, find_model
from app.engine import Engine
from app.page import build_app
from app.render import case_for_page, fixed_part, lesion_result
from dermrw.datasets.ham10000 import read_ham10000, with_images
from dermrw.diagnoses import DX
from dermrw.errors import UserError
from dermrw.inference.case_index import Index, index_path
from dermrw.inference.classifier import Classifier
from dermrw.inference.lesion import combine_explanations
from dermrw.inference.verdict import decide
from dermrw.training.run_folder import read_split
from export.index import choose_examples, write_index


def index(n: int = 200) -> Index:
    rng = np.random.default_rng(0)
    names = np.array([f"I{i}" for i in range(n)])
    lesions = np.array([f"L{i // 2}" for i in range(n)])
    return Index("d" * 64, names, lesions, np.array(["nv", "mel"] * (n // 2)), names, rng.normal(size=(n, 16)))


def test_the_nearest_against_scikit_learn_one_image_a_lesion() -> None:
    whole = index()
    queries = np.random.default_rng(1).normal(size=(20, 16))
    centre = whole.embeddings.mean(0)
    distances, order = (
        NearestNeighbors(n_neighbors=200, metric="cosine").fit(whole.embeddings - centre).kneighbors(queries - centre)
    )
    for query, row, away in zip(queries, order, distances, strict=True):
        first = list(
            {whole.lesions[i]: (whole.ids[i], 1 - d) for i, d in reversed(list(zip(row, away, strict=True)))}.items()
        )
        expected = sorted((value for _, value in first), key=lambda pair: -pair[1])[:5]
        found = whole.nearest(query)
        assert [case.image_id for case in found] == [name for name, _ in expected]
        assert [case.similarity for case in found] == pytest.approx(
            [similarity for _, similarity in expected], abs=1e-5
        )


def test_agreement_is_of_other_lesions_alone() -> None:
    # images 2k and 2k+1 are one lesion, at one place; its neighbour on the line is a lesion of the other diagnosis
    place = np.repeat(np.arange(8.0), 2)
    ids, lesions = np.array([f"I{i}" for i in range(16)]), np.array([f"L{i // 2}" for i in range(16)])
    codes = np.array(["nv"] * 12 + ["mel"] * 4)
    angle = place / 8 * np.pi / 2
    cases = Index("d" * 64, ids, lesions, codes, ids, np.stack([np.cos(angle), np.sin(angle)], 1))
    own = cases.embeddings - cases.embeddings.mean(0)
    own /= np.linalg.norm(own, axis=1, keepdims=True)
    expected = []
    for query in (0, 15):
        order = [i for i in np.argsort(-(own @ own[query]), kind="stable") if lesions[i] != lesions[query]]
        first = list(dict.fromkeys(lesions[i] for i in order))[:5]
        expected.append(np.mean([codes[list(lesions).index(lesion)] == codes[query] for lesion in first]))
    nv, mel = expected
    assert nv == 0.8 and mel == 0.2
    assert cases.agreement(["I0", "I1", "I15", "unknown"]) == pytest.approx(((2 * nv + mel) / 3, (nv + mel) / 2))
    with pytest.raises(ValueError, match="none of these"):
        cases.agreement(["unknown"])


def test_an_index_comes_back_and_anothers_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "index.npz"
    path.write_bytes(index().save())
    again = Index.load(path, "d" * 64)
    query = np.random.default_rng(2).normal(size=16)
    assert [c.image_id for c in again.nearest(query)] == [c.image_id for c in index().nearest(query)]
    with pytest.raises(UserError, match="of another model file"):
        Index.load(path, "e" * 64)
    for content in (b"", b"rubbish", path.read_bytes()[:500]):
        path.write_bytes(content)
        with pytest.raises(UserError, match="can't be read"):
            Index.load(path, "d" * 64)


def test_the_demo_shows_the_cases_of_its_own_model(
    model_file: Path, sample: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = Path(shutil.copy(model_file, tmp_path / "model.onnx"))
    assert find_index(Classifier(model)) is None and capsys.readouterr().out == ""
    write_index(model, str(sample))
    classifier = Classifier(model)
    cases = find_index(classifier)
    assert cases is not None
    table = read_ham10000(sample)
    seen = classifier.explain(table["path"].iloc[3])
    found = cases.nearest(seen.embedding)
    # (this model, hardly trained, finds all alike: which is nearest is tested above)
    own = table.set_index("image_id")
    assert len({own.loc[case.image_id, "lesion_id"] for case in found}) == 5
    assert all(case.code == own.loc[case.image_id, "dx"] and case.path.is_file() for case in found)
    np.testing.assert_allclose(cases.embeddings[3], seen.embedding, atol=1e-4)
    accepted = combine_explanations(
        [seen._replace(verdict=decide(seen.probabilities, classifier.info))], classifier.info
    )
    engine = Engine(classifier, cases)
    assert engine.cases(accepted) == found
    page = lesion_result(accepted, ["mine.jpg"], engine, "equal", None)
    assert found[4].image_id in page and page.count("data:image/jpeg") == 5 and str(sample) not in page
    gone = found[0]._replace(path=Path("nowhere.jpg"))
    shown = case_for_page(gone, classifier.info)
    assert shown["picture"] == "" and "nowhere" not in str(shown)
    model.with_name("index.npz").write_bytes(index().save())
    assert find_index(classifier) is None and "of another model file" in capsys.readouterr().out


def test_examples_are_held_out_cases_of_each_class(model_file: Path, run: Path, sample: Path, tmp_path: Path) -> None:
    model = Path(shutil.copy(model_file, tmp_path / "model.onnx"))
    pictures = tmp_path / "data"
    shutil.copytree(sample, pictures)
    write_index(model, str(pictures))
    classifier = Classifier(model)
    cases = find_index(classifier)
    assert cases is not None and cases.examples
    split = read_split(run).set_index("image_id")
    known = set(split.index[split["split"] != "test"])
    fitted = set(split.loc[split["split"] != "test", "lesion_id"])
    assert [str(cases.codes[row]) for row in cases.examples] == [
        code for code in DX if set(split.index[(split["dx"] == code) & (split["split"] == "test")])
    ]
    for row in cases.examples:
        assert str(cases.ids[row]) not in known and str(cases.lesions[row]) not in fitted
    engine = Engine(classifier, cases)
    page, client = fixed_part("view", engine), TestClient(build_app(engine, lambda _: True))
    assert page.count("data-address=") == len(cases.examples) and "not fitted on" in page and str(pictures) not in page
    for place, row in enumerate(cases.examples):
        answer = client.get(f"/example/{place}")
        assert (
            answer.content == Path(str(cases.paths[row])).read_bytes() and answer.headers["cache-control"] == "no-store"
        )
    for place in (-1, len(cases.examples)):
        assert client.get(f"/example/{place}").status_code == 404
    Path(str(cases.paths[cases.examples[0]])).unlink()
    gone = client.get("/example/0")
    assert gone.status_code == 404 and "make index" in gone.json()["error"] and str(pictures) not in gone.text
    assert fixed_part("view", engine).count("data-address=") == len(cases.examples) - 1


def test_without_a_list_of_fitted_images_the_examples_are_drawings(model_file: Path, sample: Path) -> None:
    classifier = Classifier(model_file)
    classifier.known_images = lambda: None  # type: ignore[method-assign]
    table = with_images(read_ham10000(sample), sample)
    assert choose_examples(table, classifier) == []
    page = fixed_part("view", Engine(classifier, index()))  # an index of an older version has no examples
    assert page.count("data-example=") == 7 and "data-address" not in page and "not a photograph" in page


def test_the_model_that_is_served(tmp_path: Path) -> None:
    assert find_model(None).name == "model.onnx" and find_model(None).parent.name == "app"
    assert find_model(tmp_path) == tmp_path / "model.onnx"
    assert find_model(tmp_path / "x.onnx") == tmp_path / "x.onnx"
    assert index_path(find_model(None)).name == "index.npz"
