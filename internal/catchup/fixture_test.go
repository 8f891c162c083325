package catchup

import (
	"fmt"

	"github.com/kvd-io/kvd/internal/roster"
)

const testCluster = 0xc1

func testMember(id uint64) roster.Member {
	return roster.Member{ID: id, Name: fmt.Sprintf("n%d", id), PeerURLs: []string{fmt.Sprintf("http://n%d:1", id)}}
}
