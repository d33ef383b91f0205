"""What sources of files and of S3 objects share: `cutting` objects → splits · `cursor` splits → batches of records."""
