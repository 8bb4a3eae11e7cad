"""The fixed texts that rows are measured on."""

from __future__ import annotations

from bench.children import ROOT

# Perplexity: the licence of this repository, public and the same for everybody.
PERPLEXITY_FILE = ROOT / "LICENSE"
PERPLEXITY_TOKENS = 2048

# Continued greedily by the reference; plain text, so that a base model and a chat model both fit.
PROMPTS = (
    "The lighthouse keeper climbed the spiral stairs each evening to light the lamp, and",
    "Water boils at a lower temperature on a mountain than at the sea, because",
    'def fibonacci(n):\n    """Return the n-th Fibonacci number."""\n',
    "Dear Sir or Madam,\n\nI am writing to complain about the train that",
    "Question: What is the capital of France?\nAnswer:",
    "Ingredients: two eggs, a cup of flour, half a cup of milk. Method: first,",
    "In 1969, for the first time in history,",
    "La bibliothèque de la ville était fermée, alors les enfants",
    "The following table lists the planets in order of their distance from the sun:\n"
    "1. Mercury\n2.",
    "She opened the old wooden box and found inside it a letter that said:",
)
PROMPT_TOKENS = 32  # generated after each prompt
