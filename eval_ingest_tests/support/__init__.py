"""What tests share: datasets, oracles, servers, faults. No test stands here."""
