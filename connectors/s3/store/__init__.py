"""One S3 bucket as an exactly-once store: `lane` has the protocol and the reasons why it holds."""
