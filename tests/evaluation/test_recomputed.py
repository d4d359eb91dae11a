"""
Every task of an evaluation, from the command line to results.json, on photographs of handwritten digits that come with
scikit-learn. Each figure is computed anew by code that shares nothing with the protocols.
"""

import json

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image, List, Value
from PIL import Image as PILImage
from scipy.linalg import svdvals
from scipy.optimize import minimize
from scipy.special import log_softmax
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits
from sklearn.metrics import average_precision_score, balanced_accuracy_score, normalized_mutual_info_score
from sklearn.neighbors import KNeighborsClassifier

from modeling_cyclip.commands.evaluate import main
from modeling_cyclip.evaluation.linear_probe import C_GRID
from tests.evaluation.test_linear_probe import slow_linear_probe


NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
TEMPLATES = ["a photo of a {}.", "the number {}"]


def pictures(rows):
    """Digits in the four corners of an image tell the encoder's patches apart."""
    images, labels = load_digits(return_X_y=True)
    for row in rows:
        pixels = np.kron(images[row].reshape(8, 8) * 15.9, np.ones((2, 2))).astype(np.uint8)
        yield PILImage.fromarray(pixels).convert("RGB"), int(labels[row])


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits")
    features = {"image": Image(), "label": ClassLabel(names=NAMES), "parity": Value("string")}
    features = Features({**features, "captions": List(Value("string"))})
    for split, rows in {"test": range(60), "train": range(100, 260), "shifted": range(300, 330)}.items():
        images, labels = zip(*pictures(rows), strict=True)
        columns = {
            "image": list(images),
            "label": list(labels),
            "parity": ["odd" if label % 2 else "even" for label in labels],
            "captions": [
                [f"{NAMES[label]} {row}", f"digit {NAMES[label]}"][: 1 + row % 2] for row, label in enumerate(labels)
            ],
        }
        Dataset.from_dict(columns, features=features).to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
    return folder


@pytest.fixture
def embedded(model, processor):
    """Unit embeddings and raw features in float64, one input at a time, by the model's own methods."""
    model.eval()

    def unit(array):
        return array / np.linalg.norm(array, axis=1, keepdims=True)

    def features_of(images):
        with torch.no_grad():
            inputs = (processor(images=image, return_tensors="pt") for image in images)
            return np.concatenate([model.get_image_features(**one).pooler_output.double().numpy() for one in inputs])

    def texts(texts):
        with torch.no_grad():
            inputs = (processor.tokenizer(text, truncation=True, max_length=16, return_tensors="pt") for text in texts)
            return unit(
                np.concatenate([model.get_text_features(**one).pooler_output.double().numpy() for one in inputs])
            )

    classes = unit(np.stack([texts([text.format(name) for text in TEMPLATES]).mean(axis=0) for name in NAMES]))
    return unit, features_of, texts, classes


@pytest.fixture
def results(digits, checkpoint, tmp_path):
    (tmp_path / "templates.txt").write_text("\n".join(TEMPLATES))
    arguments = ["--model_name_or_path", checkpoint, "--dataset", str(digits), "--output_dir", str(tmp_path / "out")]
    arguments += ["--train_split", "train", "--shift_splits", "shifted", "--coarse_column", "parity", "--tasks", "all"]
    main([*arguments, "--templates", str(tmp_path / "templates.txt"), "--batch_size", "7"])
    (tables,) = json.loads((tmp_path / "out" / "results.json").read_text())["results"].values()
    return {task: {name: figure["value"] for name, figure in figures.items()} for task, figures in tables.items()}


def top_k(scores, labels, k):
    """Share of rows whose label is among the k highest scores."""
    return np.mean([label in np.argsort(-row, kind="stable")[:k] for row, label in zip(scores, labels, strict=True)])


def logistic_accuracy(train, labels, test, test_labels, c):
    """scikit-learn's objective at its optimum, by another route: Newton's method on every weight at once."""
    num_classes = labels.max() + 1
    inputs, one_hot = np.c_[train, np.ones(len(train))], np.eye(num_classes)[labels]
    penalised = np.r_[np.ones(train.shape[1]), 0]

    def objective(flat):
        weights = flat.reshape(num_classes, -1)
        log_probabilities = log_softmax(inputs @ weights.T, axis=1)
        gradient = c * (np.exp(log_probabilities) - one_hot).T @ inputs + penalised * weights
        loss = -c * (one_hot * log_probabilities).sum() + 0.5 * (penalised * weights**2).sum()
        return loss / (c * len(train)), gradient.ravel() / (c * len(train))

    start = np.zeros(num_classes * inputs.shape[1])
    found = minimize(objective, start, jac=True, method="BFGS", options={"gtol": 1e-7, "maxiter": 5000})
    scores = np.c_[test, np.ones(len(test))] @ found.x.reshape(num_classes, -1).T
    return np.mean(scores.argmax(axis=1) == test_labels)


def test_every_task_equals_an_independent_reference(results, digits, embedded):
    unit, features_of, texts_of, classes = embedded
    found = {}
    images, labels = zip(*pictures(range(60)), strict=True)
    labels, features = np.array(labels), features_of(images)
    embeds = unit(features)
    scores = embeds @ classes.T
    predictions = scores.argmax(axis=1)

    found["zero_shot"] = {f"top{k}": top_k(scores, labels, k) for k in (1, 3, 5, 10)}
    found["zero_shot"]["mean_per_class"] = balanced_accuracy_score(labels, predictions)

    shifted_images, shifted_labels = zip(*pictures(range(300, 330)), strict=True)
    shifted_labels = np.array(shifted_labels)
    shifted = unit(features_of(shifted_images)) @ classes.T
    name = f"{digits} [shifted]"
    found["shift"] = {f"{name} top{k}": top_k(shifted, shifted_labels, k) for k in (1, 3, 5, 10)}
    found["shift"][f"{name} mean_per_class"] = balanced_accuracy_score(shifted_labels, shifted.argmax(axis=1))
    present = np.isin(labels, shifted_labels)
    base = np.mean(predictions[present] == labels[present])
    found["shift"][f"{name}: top1 without the shift, same classes"] = base
    found["shift"][f"{name}: drop (points)"] = 100 * (base - found["shift"][f"{name} top1"])

    train_images, train_labels = zip(*pictures(range(100, 260)), strict=True)
    train_labels, train_features = np.array(train_labels), features_of(train_images)
    found["consistency"] = {}
    order = np.argsort(-embeds @ unit(train_features).T, axis=1, kind="stable")
    for k in (1, 3, 5, 10, 30):
        votes = []
        for row in order:
            nearest, number = train_labels[row[:k]], k
            while np.sum(np.bincount(nearest) == np.bincount(nearest).max()) > 1:
                number -= 1
                nearest = train_labels[row[:number]]
            votes.append(np.bincount(nearest).argmax())
        found["consistency"][f"k={k}"] = np.mean(np.array(votes) == predictions)
    classifier = KNeighborsClassifier(1, metric="cosine").fit(train_features, train_labels)
    assert found["consistency"]["k=1"] == np.mean(classifier.predict(features) == predictions)

    parity = np.arange(10) % 2
    same = np.where(parity[None, :] == parity[labels][:, None], scores, -np.inf)
    best = np.stack([scores[:, parity == group].max(axis=1) for group in (0, 1)], axis=1)
    found["fine_coarse"] = {f"fine_top{k}": top_k(same, labels, k) for k in (1, 2, 3)}
    found["fine_coarse"] |= {f"coarse_top{k}": top_k(best, parity[labels], k) for k in (1, 2, 3)}

    captions = [[f"{NAMES[label]} {row}", f"digit {NAMES[label]}"][: 1 + row % 2] for row, label in enumerate(labels)]
    flat = [(row, text) for row, texts in enumerate(captions) for text in texts]
    owners = np.array([row for row, _ in flat])
    caption_embeds = texts_of([text for _, text in flat])
    similarities = embeds @ caption_embeds.T
    found["retrieval"] = {}
    for k in (1, 5, 10):
        hits = [
            np.isin(owners[np.argsort(-row, kind="stable")[:k]], image).any() for image, row in enumerate(similarities)
        ]
        found["retrieval"][f"image_to_text_recall@{k}"] = np.mean(hits)
        found["retrieval"][f"text_to_image_recall@{k}"] = top_k(similarities.T, owners, k)

    train, test = torch.from_numpy(train_features).float(), torch.from_numpy(features).float()
    probe = slow_linear_probe(train, torch.from_numpy(train_labels), test, 10, epochs=32, batch_size=16).numpy()
    found["linear_probe"] = {
        "official accuracy": np.mean(probe == labels),
        "official mean_per_class": balanced_accuracy_score(labels, probe),
    }
    assert results["linear_probe"]["logistic regression C"] in C_GRID
    mean = train_features.mean(axis=0)
    scale = np.sqrt(((train_features - mean) ** 2).mean())
    found["linear_probe"]["logistic regression accuracy"] = logistic_accuracy(
        (train_features - mean) / scale, train_labels, (features - mean) / scale, labels,
        results["linear_probe"]["logistic regression C"],
    )  # fmt: skip

    def geometry(texts):
        gap = np.linalg.norm(embeds.mean(axis=0) - texts.mean(axis=0))
        inmodal = ((embeds @ embeds.T - texts @ texts.T) ** 2).mean()
        cross = embeds @ texts.T
        return {
            "modality_gap": gap,
            "inmodal_cyclic_gap": inmodal,
            "crossmodal_cyclic_gap": ((cross - cross.T) ** 2).mean(),
        }

    def effective_rank(embeds):
        shares = svdvals(embeds) / svdvals(embeds).sum()
        return np.exp(-np.sum(shares * np.log(np.maximum(shares, 1e-300))))

    others = ~np.eye(60, dtype=bool)
    own = classes[labels]
    firsts = caption_embeds[[int(np.argmax(owners == row)) for row in range(60)]]
    distances = ((embeds[:, None] - firsts[None]) ** 2).sum(axis=2)
    found["geometry"] = {
        "alignment": np.mean(np.sum(embeds * own, axis=1)),
        "uniformity": np.log(np.exp(-embeds @ own.T)[others].mean()),
        **geometry(own),
        "captions: alignment": distances.diagonal().mean(),
        "captions: uniformity": np.log(np.exp(-2 * distances)[others].mean()),
        **{f"captions: {name}": value for name, value in geometry(firsts).items()},
        "effective rank of class embeddings": effective_rank(classes),
        "effective rank of caption embeddings": effective_rank(caption_embeds),
        "effective rank of image embeddings": effective_rank(embeds),
    }

    found["image_retrieval"], found["clustering"] = {}, {}
    for kind, rows, its_labels in (("images", embeds, labels), ("captions", caption_embeds, labels[owners])):
        precisions = []
        for row in range(len(rows)):
            rest = np.arange(len(rows)) != row
            if (relevant := its_labels[rest] == its_labels[row]).any():
                # Equal captions are equally similar: the lower index comes first.
                similarity = np.round(rows[rest] @ rows[row], 9)
                ranks = 1 + np.flatnonzero(relevant[np.argsort(-similarity, kind="stable")])
                precisions.append(np.mean(np.arange(1, len(ranks) + 1) / ranks))
                if len(np.unique(similarity)) == len(similarity):
                    assert precisions[-1] == pytest.approx(average_precision_score(relevant, similarity))
        found["image_retrieval"][f"{kind}: mean_average_precision"] = np.mean(precisions)
        # The starts of k-means are its own. What is recomputed is the score of its clusters.
        clusters = KMeans(10, n_init=4, random_state=0).fit_predict(rows.astype(np.float32))
        score = normalized_mutual_info_score(its_labels, clusters)
        found["clustering"][f"{kind}: normalized_mutual_information"] = score

    assert found.keys() == results.keys()
    for task, figures in found.items():
        left = results[task].keys() - figures.keys()
        assert left <= {"logistic regression C", "logistic regression mean_per_class"}
        assert {name: results[task][name] for name in figures} == pytest.approx(figures, abs=1e-6), task


def test_each_score_of_winoground_is_recomputed(model, checkpoint, embedded, tmp_path):
    # As initialised, a model gives all images nearly one embedding, and so no example any score.
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(10 if weight.ndim > 1 else 1)
    model.save_pretrained(checkpoint)
    examples = list(zip(pictures(range(40)), pictures(range(60, 100)), strict=True))
    columns = {f"image_{half}": [pair[half][0] for pair in examples] for half in (0, 1)}
    for half in (0, 1):
        digits_of = [(NAMES[pair[half][1]], NAMES[pair[1 - half][1]]) for pair in examples]
        columns[f"caption_{half}"] = [f"{own} then {other} {row}" for row, (own, other) in enumerate(digits_of)]
    features = {name: Image() if name.startswith("image") else Value("string") for name in columns}
    Dataset.from_dict(columns, Features(features)).to_parquet(tmp_path / "data" / "test-00000-of-00001.parquet")
    arguments = ["--model_name_or_path", checkpoint, "--dataset", str(tmp_path / "data"), "--tasks", "winoground"]
    main([*arguments, "--output_dir", str(tmp_path / "out"), "--batch_size", "7"])
    (tables,) = json.loads((tmp_path / "out" / "results.json").read_text())["results"].values()

    unit, features_of, texts, _ = embedded
    images = [unit(features_of(columns[f"image_{half}"])) for half in (0, 1)]
    captions = [texts(columns[f"caption_{half}"]) for half in (0, 1)]
    found = {"text_score": [], "image_score": [], "group_score": []}
    for row in range(len(examples)):

        def similarity(image, caption, row=row):
            return float(images[image][row] @ captions[caption][row])

        # Each image prefers its own caption; each caption prefers its own image; both.
        by_image = all(similarity(half, half) > similarity(half, 1 - half) for half in (0, 1))
        by_caption = all(similarity(half, half) > similarity(1 - half, half) for half in (0, 1))
        for name, right in (
            ("text_score", by_image),
            ("image_score", by_caption),
            ("group_score", by_image and by_caption),
        ):
            found[name].append(right)
    expected = {name: np.mean(right) for name, right in found.items()}
    assert len({0.0, *expected.values(), 1.0}) == 5, expected
    assert {name: figure["value"] for name, figure in tables["winoground"].items()} == pytest.approx(
        expected, abs=1e-6
    )
