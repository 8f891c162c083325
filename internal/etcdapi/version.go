package etcdapi

// What kvd tells clients of etcd about its version. Clients switch on features by it: they
// parse it as three numbers, so there is nothing of kvd in it.
const (
	// Version is the version of etcd that this package behaves like.
	Version = "3.7.3"
	// ClusterVersion and StorageVersion are its minor version, as etcd tells them.
	ClusterVersion = "3.7.0"
	StorageVersion = "3.7.0"
)
