package dialect

import (
	"fmt"
	"net/http"

	"github.com/kvd-io/kvd/internal/api"
)

// raftd returns the routes of goraft's reference server, with those for members, leader
// and state that a fork of it added. Its errors are problem documents: raftd's own were
// lines of text for people.
func raftd() []Route {
	return []Route{
		{Pattern: "/db/{key}", Method: http.MethodGet, Keys: true, Answer: raftdGet},
		{Pattern: "/db/{key}", Method: http.MethodPost, Keys: true, Body: true, Mutates: true, Answer: raftdPut},
		{Pattern: "/join", Method: http.MethodPost, Body: true, Mutates: true, Answer: raftdJoin},
		{Pattern: "/members", Method: http.MethodGet, Answer: raftdMembers},
		{Pattern: "/leader", Method: http.MethodGet, Answer: raftdLeader},
		{Pattern: "/state", Method: http.MethodGet, Answer: raftdState},
	}
}

// raftdGet answers a missing key like an empty one: raftd's store returned Go's zero
// value.
func raftdGet(c *Call) error {
	found, err := c.Keys.Get(c.Arg, false)
	if err == nil && !found {
		c.Respond(http.StatusOK, "", nil)
	}
	return err
}

func raftdPut(c *Call) error {
	if err := c.Keys.Put(c.Arg); err != nil {
		return err
	}
	c.Respond(http.StatusOK, "", nil)
	return nil
}

// raftdPeer is a member in raftd's documents. The connection string is a client URL:
// raftd had one port for everybody.
type raftdPeer struct {
	Name             string `json:"name"`
	ConnectionString string `json:"connectionString"`
}

// raftdJoin adds the node that listens at the connection string. raftd took a URL that
// was a member's already; a second member behind one URL would get the messages of the
// first.
func raftdJoin(c *Call) error {
	var peer raftdPeer
	if err := c.Document(&peer); err != nil {
		return err
	}
	if peer.ConnectionString == "" {
		return api.Errorf(api.BadRequest, "the field \"connectionString\" must be a client URL of the node to add (for example, http://localhost:4002)")
	}
	ctx, cancel, err := c.Begin()
	if err != nil {
		return err
	}
	defer cancel()
	urls, err := c.Cluster.PeerURLsOf(ctx, peer.ConnectionString)
	if err != nil {
		return err
	}
	if _, err := c.Cluster.AddMember(ctx, api.NewMember{Name: peer.Name, PeerURLs: urls, ClientURLs: []string{peer.ConnectionString}}); err != nil {
		return err
	}
	c.Respond(http.StatusOK, "", nil)
	return nil
}

// raftdMembers answers with the other members. goraft kept its peers in a map by name;
// in kvd two members may have the same name, hence a list.
func raftdMembers(c *Call) error {
	ctx, cancel, err := c.Begin()
	if err != nil {
		return err
	}
	defer cancel()
	status, err := c.Cluster.Status(ctx)
	if err != nil {
		return err
	}
	members, err := c.Cluster.Members(ctx)
	if err != nil {
		return err
	}
	peers := []raftdPeer{}
	for _, m := range members {
		if m.ID != status.ID {
			peers = append(peers, raftdPeer{Name: m.Name, ConnectionString: first(m.ClientURLs)})
		}
	}
	return c.respondJSON(http.StatusOK, peers)
}

// first returns the first URL, or nothing: a member that never started has told none.
func first(urls []string) string {
	if len(urls) == 0 {
		return ""
	}
	return urls[0]
}

// raftdLeader answers with the leader's name. Without a leader raftd answered with
// nothing, which a script takes for a name.
func raftdLeader(c *Call) error {
	leader, err := c.Cluster.Leader()
	if err != nil {
		return err
	}
	c.respondText(leader.Name)
	return nil
}

// raftdState answers with the line that goraft wrote for debugging, misspelled as it was.
func raftdState(c *Call) error {
	ctx, cancel, err := c.Begin()
	if err != nil {
		return err
	}
	defer cancel()
	st, err := c.Cluster.Status(ctx)
	if err != nil {
		return err
	}
	c.respondText(fmt.Sprintf("Name: %s, State: %s, Term: %d, CommitedIndex: %d", st.Name, voterRole(st.Role), st.Term, st.Commit))
	return nil
}

// voterRole returns a role in the words of systems that had no learners. A learner
// follows.
func voterRole(role string) string {
	if role == "learner" {
		return "follower"
	}
	return role
}
