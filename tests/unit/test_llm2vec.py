"""LLM2Vec's published folders, written here in their layout, against plain transformers and PEFT.

Against its own package: `benchmarks/llm2vec.py`.
"""

import json
import pickle
import shutil

import numpy as np
import pytest
import runs
import torch
from conftest import SENTENCES
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import safe_open
from tiny import load, train_a_little
from transformers import AutoModel, AutoTokenizer

from lightning_modules import Supervised, identity
from lightning_modules.sizing.shape import read_shape
from otherside import llm2vec, weights
from otherside.adapters import Lora, SavedAdapter
from otherside.backbone import Backbone, BackboneConfig
from otherside.encoder import Encoder
from otherside.export import export
from otherside.lineage import ADAPTER_WEIGHTS, Card
from otherside.probing.variants import find_variants
from otherside.template import Template, template_of
from otherside.tokenizer import load_tokenizer

LONGER = {"data.init_args.max_length": 64}  # the header alone has 36 tokens here
INSTRUCTION = "Retrieve the other side:"
TEXTS = [*SENTENCES, "  spaces around  ", "Snow </s> fell.", "a line\n"]
LLAMA_3 = ("<|start_header_id|>user<|end_header_id|>\n\n", "<|eot_id|>")
BASES = {  # by the base's name, what stands around texts
    "meta-llama/Meta-Llama-3-8B-Instruct": LLAMA_3,
    "meta-llama/Llama-2-7b-chat-hf": ("[INST] ", " [/INST]"),
    "mistralai/Mistral-7B-Instruct-v0.2": ("[INST] ", " [/INST]"),
    "princeton-nlp/Sheared-LLaMA-1.3B": ("", ""),
}


def change(file, **values):
    content = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps(content | values))


def body(folder, *adapters):
    """The model without its head, and adapters merged into it by PEFT."""
    model = AutoModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    for adapter in adapters:
        model = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    return model.eval()


def publish(folder, base, name="meta-llama/Meta-Llama-3-8B-Instruct"):
    """`LLM2Vec-X-mntp`, and `-supervised` and `-unsup-simcse` upon it, as they are on the hub."""
    mntp = folder / "LLM2Vec-X-mntp"
    tokenizer = AutoTokenizer.from_pretrained(base)
    for seed, ending in enumerate(("", "-supervised", "-unsup-simcse"), 1):
        model = body(base, *([mntp] if ending else []))
        adapted = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "up_proj"]))
        train_a_little(adapted, seed, size=0.1)
        adapted.save_pretrained(f"{mntp}{ending}")
        tokenizer.save_pretrained(f"{mntp}{ending}")
    shutil.copyfile(base / "config.json", mntp / "config.json")
    code = {"AutoConfig": "encoder.Config", "AutoModel": "encoder.Model"}
    change(mntp / "config.json", _name_or_path=name, auto_map=code)
    (mntp / "encoder.py").write_text("raise SystemExit('code of the checkpoint was run')")
    settings = {"pooling_mode": "mean", "max_length": 512, "doc_max_length": 400, "skip_instruction": True}
    change(folder / "LLM2Vec-X-mntp-supervised" / "llm2vec_config.json", **settings)
    return folder


@torch.no_grad()
def by_hand(model, tokenizer, texts, around, instruction="") -> np.ndarray:
    """One text at a time under a mask that hides nothing: the mean of as many last tokens as the text has alone."""
    vectors = []
    for text in texts:
        text = (text.rstrip() if around[1] else text) + around[1]
        ids = tokenizer(around[0] + (f"{instruction} " if instruction else "") + text, return_tensors="pt").input_ids
        own = len(tokenizer(text, add_special_tokens=False).input_ids)
        states = model(ids, attention_mask=torch.zeros(1, 1, ids.shape[1], ids.shape[1])).last_hidden_state[0]
        vectors.append(states[-own:].mean(0))
    return torch.stack(vectors).numpy()


def close(found, expected) -> bool:
    return found.shape == expected.shape and abs(found - expected).max() <= 1e-5 * abs(expected).max()


@pytest.fixture(scope="module")
def published(tiny_llama_bos, tmp_path_factory):
    """All three, on a Llama 3 by name."""
    return publish(tmp_path_factory.mktemp("published"), tiny_llama_bos)


@pytest.fixture(scope="module")
def supervised(published):
    return published / "LLM2Vec-X-mntp-supervised"


@pytest.fixture
def copied(published, tmp_path):
    """The three, to be changed."""
    return shutil.copytree(published, tmp_path / "copied")


@pytest.fixture(scope="module")
def trained(supervised, tmp_path_factory):
    """A stage upon the published folder."""
    encoder = Encoder(load(supervised, Lora(r=4)), load_tokenizer(str(supervised)), pool_start=False)
    train_a_little(encoder.backbone.lm, 4, size=0.1)
    return encoder.eval(), encoder.save(tmp_path_factory.mktemp("trained") / "encoder", "more")


class TestVectors:
    @pytest.mark.parametrize("name", BASES)
    def test_equal_plain_transformers(self, tiny_llama_bos, tmp_path, name):
        base = tiny_llama_bos
        if name.startswith("mistral"):
            base = shutil.copytree(base, tmp_path / "mistral")  # whose weights are named alike
            change(
                base / "config.json", model_type="mistral", architectures=["MistralForCausalLM"], sliding_window=None
            )
        publish(tmp_path, base, name)
        tokenizer, mntp = AutoTokenizer.from_pretrained(base), tmp_path / "LLM2Vec-X-mntp"
        for ending in ("", "-supervised", "-unsup-simcse"):
            folder = tmp_path / f"LLM2Vec-X-mntp{ending}"
            model = body(base, mntp, *([folder] if ending else []))
            encoder = Encoder.load(folder)
            for instruction in ("", INSTRUCTION):
                expected = by_hand(model, tokenizer, TEXTS, BASES[name], instruction)
                assert close(encoder.encode(TEXTS, instruction=instruction), expected)
                assert close(encoder.encode(TEXTS, instruction=f"  {instruction}\n"), expected)

    def test_adapters_beside_the_base(self, supervised):
        encoder = Encoder.load(supervised, merge=False)
        assert close(encoder.encode(TEXTS), Encoder.load(supervised).encode(TEXTS))
        with encoder.backbone.as_base():
            assert encoder.backbone.attention == "causal"

    def test_loaded_in_pieces(self, supervised):
        """As strategies do that shard the base."""
        backbone = Backbone.load(BackboneConfig(str(supervised), dtype="float32"), None, lambda modules: None)
        encoder = Encoder(backbone, load_tokenizer(str(supervised)), pool_start=False)
        assert close(encoder.encode(TEXTS), Encoder.load(supervised).encode(TEXTS))

    def test_a_stage_upon_it_keeps_how_texts_are_read(self, trained):
        encoder, folder = trained
        expected = encoder.encode(TEXTS, instruction=INSTRUCTION)
        card = Card.read(folder)
        assert [adapter.name for adapter in card.lineage.adapters] == ["mntp", "supervised", "more"]
        assert card.template == Template("".join((LLAMA_3[0], "{instruction} {text}", LLAMA_3[1])), 400)
        assert (card.pool_start, card.sink, card.start_token) == (False, None, "<s>")
        assert close(Encoder.load(folder).encode(TEXTS, instruction=INSTRUCTION), expected)

    def test_only_the_adapters_files_are_kept(self, trained):
        for adapter in Card.read(trained[1]).lineage.adapters:
            found = [path.name for path in (trained[1] / "adapters" / adapter.folder).iterdir()]
            assert sorted(found) == ["adapter_config.json", ADAPTER_WEIGHTS]

    def test_keys_are_those_of_the_whole_model(self, supervised):
        with safe_open(supervised / ADAPTER_WEIGHTS, "pt") as file:
            assert all(key.startswith("base_model.model.layers.") for key in file.keys())  # noqa: SIM118
        for adapter in weights.card_of(str(supervised)).lineage.adapters:
            assert all(key.startswith("model.layers.") for key in SavedAdapter(adapter).weights)


class TestChain:
    def test_card(self, supervised, tiny_llama_bos):
        card = weights.card_of(str(supervised))
        assert (card.stage, card.attention, card.pooling, card.max_length) == (
            "supervised",
            "bidirectional",
            "mean",
            512,
        )
        assert card.lineage.base == str(tiny_llama_bos)
        assert not card.keep_sink
        for adapter in card.lineage.adapters:
            adapter.check()

    def test_relative_path(self, supervised, monkeypatch):
        monkeypatch.chdir(supervised)
        assert weights.card_of(".") == weights.card_of(str(supervised))

    def test_the_header_is_the_bases_by_name_wherever_it_stands(self, copied):
        folder = copied / "LLM2Vec-X-mntp"
        assert "<|eot_id|>" in weights.card_of(str(folder)).template.form
        (folder / "config.json").unlink()
        assert weights.card_of(str(folder)).template.form == "{instruction} {text}"
        change(folder / "adapter_config.json", base_model_name_or_path="meta-llama/Llama-2-7b-chat-hf")
        assert weights.card_of(str(folder)).template.form == "[INST] {instruction} {text} [/INST]"

    def test_base_is_mntps_folder(self, copied):
        """As a newer PEFT notes it, or a user; the name then does not matter."""
        folder = (copied / "LLM2Vec-X-mntp-supervised").rename(copied / "mine")
        change(folder / "adapter_config.json", base_model_name_or_path=str(copied / "LLM2Vec-X-mntp"))
        assert [a.name for a in weights.card_of(str(folder)).lineage.adapters] == ["mntp", "llm2vec"]

    @pytest.mark.parametrize(
        ("name", "stage", "below"),
        [
            ("LLM2Vec-X-mntp", "mntp", "LLM2Vec-X-mntp"),
            ("LLM2Vec-X-mntp-supervised", "supervised", "LLM2Vec-X-mntp"),
            ("LLM2Vec-X-mntp-unsup-simcse", "simcse", "LLM2Vec-X-mntp"),
            ("LLM2Vec-X-unsup-simcse", "simcse", "LLM2Vec-X-mntp"),
            ("llm2vec-da-mntp-simcse", "simcse", "llm2vec-da-mntp"),
            ("mntp-supervised", "supervised", "mntp"),
            ("llm2vec-unsupervised", "llm2vec", "llm2vec-unsupervised"),
        ],
    )
    def test_names(self, tmp_path, name, stage, below):
        assert llm2vec.stage_of(tmp_path / name) == stage
        assert llm2vec.CONTRASTIVE.sub("mntp", name) == below

    def test_in_the_hubs_cache(self, published, tmp_path, monkeypatch, supervised):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
        for folder in published.iterdir():
            cached = tmp_path / f"models--McGill-NLP--{folder.name}"
            shutil.copytree(folder, cached / "snapshots" / ("0" * 40))
            (cached / "refs").mkdir()
            (cached / "refs" / "main").write_text("0" * 40)
        llm2vec.downloaded.cache_clear()
        model = "McGill-NLP/LLM2Vec-X-mntp-supervised"
        expected = Encoder.load(supervised).encode(TEXTS)
        assert close(Encoder.load(model).encode(TEXTS), expected)
        assert weights.card_of(str(weights.locate(model))) == weights.card_of(model)
        assert identity.adapters(model) == identity.adapters(str(supervised)) != []
        alone = shutil.copytree(supervised, tmp_path / "alone" / supervised.name)  # MNTP is on the hub
        assert close(Encoder.load(alone).encode(TEXTS), expected)
        llm2vec.downloaded.cache_clear()

    def test_what_is_asked_of_the_hub(self, published, monkeypatch):
        asked = {}

        def snapshot(model, **options):
            asked.update(options)
            return str(published / "LLM2Vec-X-mntp")

        monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *args, **options: "")
        monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
        llm2vec.downloaded.cache_clear()
        assert weights.locate("McGill-NLP/LLM2Vec-X-mntp", "v1") == published / "LLM2Vec-X-mntp"
        assert asked["revision"] == "v1"
        assert not any(name.endswith((".py", ".bin")) or name == "*" for name in asked["allow_patterns"])
        llm2vec.downloaded.cache_clear()


class TestRefused:
    def refused(self, folder, *says, error=ValueError):
        with pytest.raises(error) as caught:
            Encoder.load(folder)
        assert all(said in str(caught.value) for said in says), caught.value

    def test_a_pickle(self, copied):
        folder = copied / "LLM2Vec-X-mntp"
        (folder / ADAPTER_WEIGHTS).unlink()
        (folder / "adapter_model.bin").write_bytes(pickle.dumps({}))
        self.refused(folder, "must have its weights as adapter_model.safetensors", "adapter_model.bin", "revision")

    def test_another_adapter(self, copied, trained):
        folder = (copied / "LLM2Vec-X-mntp").rename(copied / "chat")
        self.refused(folder, "nothing says that it is LLM2Vec's", "merge_and_unload")
        self.refused(Card.read(trained[1]).lineage.adapters[2].folder, "Name the encoder folder it belongs to")

    @pytest.mark.parametrize("more", [{"modules_to_save": ["embed_tokens"]}, {"trainable_token_indices": [3]}])
    def test_more_than_lora(self, copied, more):
        folder = copied / "LLM2Vec-X-mntp"
        change(folder / "adapter_config.json", **more)
        self.refused(folder, "must be LoRA alone", f"it has {next(iter(more))}, not read", "merge_and_unload")

    def test_another_pooling(self, copied):
        folder = copied / "LLM2Vec-X-mntp-supervised"
        change(folder / "llm2vec_config.json", pooling_mode="eos_token")
        self.refused(folder, "pooling_mode of mean, weighted_mean, last_token", "'eos_token'")
        change(folder / "llm2vec_config.json", pooling_mode="mean", skip_instruction=False)
        self.refused(folder, "skip_instruction true; got 'mean' and False")

    def test_mntp_is_missing(self, copied):
        shutil.rmtree(copied / "LLM2Vec-X-mntp")
        says = ("was trained on LLM2Vec-X-mntp", "McGill-NLP/LLM2Vec-X-mntp", f"Download it into {copied}")
        self.refused(copied / "LLM2Vec-X-mntp-supervised", *says, error=FileNotFoundError)

    def test_a_name_that_does_not_tell(self, copied):
        folder = (copied / "LLM2Vec-X-mntp-supervised").rename(copied / "mine")
        self.refused(folder, "must be named X-mntp-supervised", "Rename it")

    def test_broken_json(self, copied):
        (copied / "LLM2Vec-X-mntp" / "adapter_config.json").write_text("{")
        self.refused(copied / "LLM2Vec-X-mntp", "adapter_config.json must be JSON", "Download it again")

    def test_no_base(self, copied):
        change(copied / "LLM2Vec-X-mntp" / "adapter_config.json", base_model_name_or_path="/no/llama")
        says = ("nothing is at /no/llama", "LLM2Vec-X-mntp/adapter_config.json, as base_model_name_or_path")
        self.refused(copied / "LLM2Vec-X-mntp-supervised", *says, error=FileNotFoundError)

    def test_an_unnamed_base(self, copied):
        change(copied / "LLM2Vec-X-mntp" / "adapter_config.json", base_model_name_or_path=None)
        self.refused(copied / "LLM2Vec-X-mntp", "must name its base in base_model_name_or_path")

    def test_another_start_token(self, supervised):
        with pytest.raises(ValueError, match="start_token must be auto"):
            Encoder.load(supervised, start_token="</s>")


class TestUse:
    def test_training(self, supervised, tmp_path):
        """With BOS in attention and not in the mean, and without a sink, as it was trained."""
        module = Supervised(backbone=BackboneConfig(str(supervised)))
        assert (module.pool_start, module.backbone_config.keep_sink, module.departures) == (False, False, "")
        runs.write_data(tmp_path)
        stage = runs.write_stage(tmp_path, "Supervised", supervised, root="run", steps=2, **LONGER)
        runs.run("fit", "--config", stage, cwd=tmp_path)
        assert Card.read(tmp_path / "run" / "encoder").template == weights.card_of(str(supervised)).template
        assert "Nothing to do" in runs.run("fit", "--config", stage, cwd=tmp_path)

    def test_export(self, supervised, tmp_path, capsys):
        with pytest.raises(ValueError, match=r"cannot put them into its template.*Use --kind=merged"):
            export(str(supervised), tmp_path / "out")
        export(str(supervised), tmp_path / "out", kind="merged")
        assert "<|eot_id|>" in capsys.readouterr().out

    def test_probing_and_size(self, supervised, tiny_llama_bos):
        found = find_variants([str(supervised)], baselines=True)
        assert [variant.name for variant in found] == ["uni", "bi", "supervised"]
        assert all(template_of(base.open("float32", "cpu").tokenizer) == found[2].card.template for base in found[:2])
        assert close(found[2].open("float32", "cpu").encode(TEXTS), Encoder.load(supervised).encode(TEXTS))
        assert read_shape(str(supervised)) == read_shape(str(tiny_llama_bos))
