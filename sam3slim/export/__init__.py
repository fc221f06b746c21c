"""From records to a model that other code opens: pick (no torch needed), convert, reopen, check, describe."""
