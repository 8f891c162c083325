// Package sidebyside runs the same commands against etcd and against kvd and compares what
// they print, to the byte and with the exit codes.
//
// The commands are in testdata: command lines of etcdctl, and requests to the JSON gateway,
// each followed by what etcd has answered. Three things are compared, so that none of them
// can go stale: what etcd answers now with the record, what kvd answers with the record,
// and both with each other. What differs from run to run anyway (ids, addresses, times,
// sizes, terms) is made equal first; see normalize.go.
//
//	CONFORMANCE_UPDATE=1 go test ./sidebyside    # writes the answers of etcd anew
//
// # The form of a script
//
//	== section          names the steps below; the store goes on
//	$ command line      of a shell, in a directory of its own, with etcdctl in the path
//	POST /path body     a request; "#3" before the path reads three lines of a stream
//		answer          indented by a tab; for a request, the status comes first
//	# comment
package sidebyside
