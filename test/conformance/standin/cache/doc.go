// Package cache stands in for a module that etcd's tests require but that has
// no published version. Nothing that the suites run imports it.
package cache
