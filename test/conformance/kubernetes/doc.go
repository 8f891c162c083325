// Package kubernetes runs the tests that Kubernetes has for its storage layer,
// the exported functions of k8s.io/apiserver/pkg/storage/testing, on a store
// that etcd3.New makes over the cluster under test, and through the watch cache.
//
// Each test gets a cluster of its own, because the tests count revisions from
// the first one. What they need from the inside of the store, Kubernetes' own
// tests reach for in unexported fields; here it comes through the store's
// parameters: see rig and dial. Left out are the tests that only Kubernetes itself
// can run, because they compare errors whose type is not exported, and those about
// the inside of the store or the cache, which say nothing about the server.
package kubernetes
