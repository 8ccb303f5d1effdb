"""Transcribe recordings, with a model that is loaded once in each worker.

The recogniser is PocketSphinx, since its package brings a model along (`pip install pocketsphinx`);
the recordings come from make_speech.py, but any WAV file will do that has 16,000 samples a second,
and in which cities are named:

    python3 -m docs.examples.make_speech 100
    python3 -m docs.examples.transcribe_speech

Three lines are other ones with VOSK, marked as such below:

    from vosk import KaldiRecognizer, Model
    decoder = KaldiRecognizer(Model(lang="en-us"), 16000)
    decoder.AcceptWaveform(samples); return json.loads(decoder.FinalResult())["text"]
"""

import csv
import wave
from typing import Any

from pocketsphinx import Decoder  # VOSK: the first line

from docs.examples.make_speech import CITIES
from resumable_pool import ResumableRunner

# Whoever knows what can be said, says so: with its own language model it understands little.
GRAMMAR = f"#JSGF V1.0; grammar cities; public <said> = ({' | '.join(CITIES)})+;"

decoder: Any = None  # one in each worker; it cannot be sent to one, so each makes its own


def load_model() -> None:
    """Takes as long as many recordings do, so it is done once in each worker."""
    global decoder
    decoder = Decoder(lm=None, loglevel="ERROR")  # VOSK: the second line
    decoder.add_jsgf_string("cities", GRAMMAR)
    decoder.activate_search("cities")


def transcribe(path: str) -> str:
    """What is said in a recording."""
    with wave.open(path) as recording:
        samples = recording.readframes(recording.getnframes())
    decoder.start_utt()  # VOSK: the third line, in place of all that follows
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
