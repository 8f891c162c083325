package e2e

import (
	"strings"
	"testing"
)

// TestMemberAddWaits adds a member with kvd member add --wait, which ends once the new
// process has caught up and votes.
func TestMemberAddWaits(t *testing.T) {
	c := newCluster(t, 3, quick...)
	put(t, c.node(1), "key", "value")
	m := c.joining()
	env := environment("KVD_ENDPOINTS=" + strings.Join([]string{c.node(1).url(), c.node(2).url(), c.node(3).url()}, ","))
	add := startProcessWith(t, env, "kvd member add", t.TempDir(), binary, "member", "add", m.peerURL(), "--wait")
	t.Cleanup(add.abandon)
	add.expectOutput(t, "added member 4 as a learner; start it with:\nkvd --id 4 ")
	m.start()
	add.expectExit(t, 0)
	add.expectOutput(t, "member 4 has caught up")
	c.awaitVoter(m)
	expectValue(t, m, "key", "value")
	lead := startProcessWith(t, env, "kvd leader transfer", t.TempDir(), binary, "leader", "transfer", "4")
	lead.expectExit(t, 0)
	lead.expectOutput(t, "member 4 (")
}
