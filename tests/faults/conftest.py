import pytest

from modeling_cyclip import CyCLIPTrainer, CyCLIPTrainingArguments


@pytest.fixture
def make_trainer(model, processor, pairs, tmp_path):
    def make(**options):
        options = {"max_steps": 2, "save_steps": 1, "per_device_train_batch_size": 8, "report_to": "none", **options}
        arguments = CyCLIPTrainingArguments(str(tmp_path), **options, use_cpu=True, disable_tqdm=True)
        return CyCLIPTrainer(model, arguments, train_dataset=pairs, processing_class=processor)

    return make
