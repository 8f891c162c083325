// Package benchmark runs every command of etcd's benchmark tool that talks to a
// server, each with its variants, and checks that no request failed. How fast
// they are is measured elsewhere, in bench/.
package benchmark
