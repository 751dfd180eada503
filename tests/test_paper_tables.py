"""The paper's tables as data: what the printed numbers themselves say."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from core import anatomy
from core.errors import InputError
from core.quality import gate

MODELS = ["VAE-GAN", "α-WGAN", "HA-GAN", "MONAI-LDM", "MedSyn", "cDPM"]


def test_tables_name_the_same_six_generators():
    assert anatomy.paper_table(1)["model"].tolist() == [*MODELS, "real MRIs"]
    assert anatomy.paper_table(2)["cohort"].tolist() == ["real MRIs", *MODELS]
    assert anatomy.paper_table(3).columns.tolist() == ["group", "region", "HA-GAN", "MedSyn", "cDPM"]


def test_table_1_as_printed():
    table = anatomy.paper_table(1).set_index("model")
    assert table.loc["MedSyn", "r101_fid"] == 0.012 and table.loc["VAE-GAN", "image_mmd"] == 131925
    assert table["r50_fid"].idxmin() == "MedSyn" and table["r50_fid"].idxmax() == "MONAI-LDM"
    assert table.drop("real MRIs").notna().all(axis=None)


def test_table_2_is_consistent_and_the_gate_keeps_the_three_generators_of_table_3():
    table = anatomy.paper_table(2).set_index("cohort")
    counted = 1 - table["failed_mris"] / table["n"]
    assert counted.index[~np.isclose(table["passing_rate"], counted)].tolist() == [
        "MedSyn"
    ]  # printed 99 %, counted 98.5 %
    assert (table["failed_rois"] >= table["failed_mris"]).all()
    kept = table.index[table["failed_mris"] <= 0.05 * table["n"]].tolist()
    assert kept == ["real MRIs", *anatomy.paper_table(3).columns[2:]]


def test_table_3_counts_best_and_large_effects():
    sizes = anatomy.paper_table(3).set_index("region")[["HA-GAN", "MedSyn", "cDPM"]].abs()
    assert len(sizes) == 49
    assert sizes.idxmin(axis=1).value_counts().to_dict() == {"cDPM": 37, "MedSyn": 9, "HA-GAN": 3}
    assert (sizes > 0.8).sum().to_dict() == {"HA-GAN": 19, "MedSyn": 2, "cDPM": 0}


def test_gate_reproduces_every_row_of_table_2():
    columns = ["general white matter", "general grey matter", "general csf", "cerebellum"]
    columns += ["brainstem", "thalamus", "putamen+pallidum", "hippocampus+amygdala"]
    for row in anatomy.paper_table(2).itertuples():
        qc = pd.DataFrame(0.9, index=[f"case-{i}" for i in range(row.n)], columns=columns)
        qc.iloc[: row.failed_mris, 0] = 0.5
        qc.iloc[: row.failed_rois - row.failed_mris, 1] = 0.5
        result = gate(qc, 0.65, max_fail_rate=0.05)
        assert (result.failed_scores, result.failed_volumes) == (row.failed_rois, row.failed_mris)
        assert result.pass_rate == pytest.approx(row.passing_rate, abs=0.0051)


def test_unknown_table():
    with pytest.raises(InputError, match="no table 4"):
        anatomy.paper_table(4)
