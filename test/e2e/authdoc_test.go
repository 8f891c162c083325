package e2e

import (
	"fmt"
	"os"
	"testing"
)

// TestAuthDocument runs the examples of docs/auth.md in order, against one node and against
// three.
func TestAuthDocument(t *testing.T) {
	const path = "../../docs/auth.md"
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	all := examples(string(text))
	if len(all) < 25 {
		t.Errorf("only %d examples were found", len(all))
	}
	for _, n := range []int{1, 3} {
		t.Run(fmt.Sprintf("%d nodes", n), func(t *testing.T) {
			t.Parallel()
			r := newDocRunner(t, newCluster(t, n))
			r.write(".curlrc", "silent\nshow-error\nmax-time = 20\n")
			r.env = append(r.env, "HOME="+r.dir) // for the login
			r.examples(path, all)
		})
	}
}
