"""What every stage shares: its configuration, its ledger, the device, the random numbers and the files it writes."""
