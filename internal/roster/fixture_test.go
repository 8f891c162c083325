package roster

import "fmt"

// What the tests' clusters have in common.
const (
	testCluster  = 0xc1
	initialIndex = 1
)

func testMember(id uint64) Member {
	return Member{ID: id, Name: fmt.Sprintf("n%d", id), PeerURLs: []string{fmt.Sprintf("http://n%d:1", id)}}
}
