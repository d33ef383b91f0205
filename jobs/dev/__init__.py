"""Real servers on this machine, without containers: Apache Kafka, an S3 server and the sandbox provider.

For `penstock dev` and for the tests. Each server is a process group of its own on the loopback interface, with its data
and its log in a folder. What they run is fetched once into the user's cache folder by Maven and Go.
"""
