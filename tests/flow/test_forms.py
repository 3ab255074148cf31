"""A version answers in the form that was chosen for this kind of machine, and in full on any other."""

from __future__ import annotations

from pathlib import Path

import pytest

from tenon import contract
from tenon.flow import Work, live, promote, variant

from .conftest import again, edit

NETWORK = """

def network(data, run):
    from sklearn.neural_network import MLPClassifier
    from tenon.training import Fitted

    matrix = data.matrix("onehot")
    model = MLPClassifier((64, 32), max_iter=3, random_state=0, early_stopping=False)
    model.fit(matrix.train, data.train.y)
    return Fitted(model=model, encoding=matrix.encoding, task=data.task, trainer="network")


slow = Model("""


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_the_form_that_the_gate_asks_for_answers_here_and_the_full_graph_elsewhere(shop: Path) -> None:
    edit(shop, "\nslow = Model(", NETWORK)
    edit(shop, 'train="logistic"', "train=network")
    edit(shop, "p99_ms=10)", "max_size_mb=0.011, flips=0.01)")
    outcome = again(shop)
    record_id = outcome.models[0].version
    assert [stage.name for stage in outcome.stages][-2:] == ["variant", "version"]
    work = Work.open(shop, {})
    try:
        record = promote.version(work, "slow", record_id)
        (tried,) = variant.of_version(work, record)
        sizes = {one["name"]: one["size_bytes"] for one in tried["variants"]}
        assert sizes["full"] > 11_000 > sizes["int8"]
        assert record["variant"] == {"id": tried["id"], "key": tried["key"], "chosen": tried["chosen"]}
        assert record["size_bytes"] == sizes[tried["chosen"]] <= 11_000
        assert [check["passed"] for check in record["gate"]["checks"] if check["name"] == "size_mb"] == [True]
        awake = live.awaken(work, "slow", record_id)
        assert awake.form.name == tried["chosen"] != "full"
        assert awake.predictor.manifest["variant"] == tried["chosen"]

        _, stage = variant.compiled(work, "slow", record_id)
        assert not stage.done  # nothing changed: it is found

        work.store.put("variant", tried["id"], {**tried, "key": "0" * 12})  # as if another machine had tried it
        elsewhere = live.awaken(work, "slow", record_id)
        assert elsewhere.form.name == "full" and "variant" not in elsewhere.predictor.manifest
        assert "was chosen on another kind of machine" in elsewhere.form.said
        row = contract.check_rows([live.example_row(work, elsewhere)], elsewhere.columns).rows[0]
        scores = [one.predictor.score(one.online.read([row])) for one in (awake, elsewhere)]
        assert abs(scores[0] - scores[1]) < 0.05
    finally:
        work.store.close()
