"""Words as tokens: the tokenizer, phrases, trimmed vocabularies and prompt banks."""
