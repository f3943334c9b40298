"""vLLM's offline `LLM`, with its own settings but for what would skip work (prefix caching)."""

import time
from pathlib import Path

from vllm import LLM, SamplingParams

from examples.peers.engines import Host
from examples.peers.timing import Timing

QUANTIZATION = {"bf16": None, "fp8": "fp8"}


class Engine:
    """variant: a key of QUANTIZATION."""

    def __init__(self, folder: Path, variant: str, host: Host):
        self._llm = LLM(
            model=str(folder),
            dtype="bfloat16",
            quantization=QUANTIZATION[variant],
            skip_tokenizer_init=True,
            enable_prefix_caching=False,
            gpu_memory_utilization=host.share,
        )

    def run(self, prompts: list[list[int]], new: int) -> Timing:
        """`LLM.generate` shows nothing before its end, so decode is the difference of a call for
        `new` tokens and one for the first alone.
        """
        first_s, _ = self._generate(prompts, 1)
        all_s, tokens = self._generate(prompts, new)
        return Timing(first_s, all_s - first_s, len(prompts) * (new - 1), tokens)

    def _generate(self, prompts: list[list[int]], new: int) -> tuple[float, list[list[int]]]:
        params = SamplingParams(temperature=0.0, max_tokens=new, ignore_eos=True, detokenize=False)
        inputs = [{"prompt_token_ids": ids} for ids in prompts]
        began = time.perf_counter()
        outputs = self._llm.generate(inputs, params, use_tqdm=False)
        seconds = time.perf_counter() - began
        return seconds, [list(output.outputs[0].token_ids) for output in outputs]
