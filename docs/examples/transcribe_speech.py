"""Transcribe recordings, with a model that is loaded once in each worker.

The recogniser is PocketSphinx, because its package brings a model along
(`pip install pocketsphinx`). The recordings come from make_speech.py, but any WAV file will do if
it has 16,000 samples a second and names cities:

    python3 -m docs.examples.make_speech 100
    python3 -m docs.examples.transcribe_speech

docs/howto.md has the same with VOSK.
"""

import csv
import wave
from typing import Any

from pocketsphinx import Decoder

from docs.examples.make_speech import CITIES
from resumable_pool import ResumableRunner

# It helps to say which words may come: with its own language model it understands little.
GRAMMAR = f"#JSGF V1.0; grammar cities; public <said> = ({' | '.join(CITIES)})+;"

decoder: Any = None  # one in each worker: it cannot be sent, so each worker makes its own


def load_model() -> None:
    """This takes as long as many recordings, so do it once in each worker."""
    global decoder
    decoder = Decoder(lm=None, loglevel="ERROR")
    decoder.add_jsgf_string("cities", GRAMMAR)
    decoder.activate_search("cities")


def transcribe(path: str) -> str:
    """What is said in a recording."""
    with wave.open(path) as recording:
        samples = recording.readframes(recording.getnframes())
    decoder.start_utt()
    decoder.process_raw(samples, full_utt=True)
    decoder.end_utt()
    return decoder.hyp().hypstr if decoder.hyp() else ""


if __name__ == "__main__":
    runner = ResumableRunner(transcribe, "speech/*.wav", "speech.pkl", initializer=load_model)
    print(runner.run())

    with open("speech/said.csv", newline="") as file:
        said = dict(csv.reader(file))
    right = sum(text == said[path] for path, text in runner.results.items())
    print(f"{right} of {len(said)} are exactly what was said; speech.pkl has them all")
