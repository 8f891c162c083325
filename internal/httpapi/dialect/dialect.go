package dialect

import (
	"context"
	"encoding/json"
	"net/http"

	"github.com/kvd-io/kvd/internal/api"
)

// Keys carries out a request on one key. Its errors are those that package httpapi
// turns into problems.
type Keys interface {
	// Put stores the body of the request. It returns once the write is committed and
	// applied.
	Put(key string) error
	// Get answers the request with the value, unless the key does not exist. A stale
	// read asks this node alone.
	Get(key string, stale bool) (found bool, err error)
	Delete(key string) (found bool, err error)
}

// Cluster reports on the cluster and adds members. Its errors are *api.Error.
type Cluster interface {
	Members(ctx context.Context) ([]api.Member, error)
	AddMember(ctx context.Context, m api.NewMember) (api.AddedMember, error)
	Leader() (api.Leader, error)
	Status(ctx context.Context) (api.Status, error)
	// PeerURLsOf asks the node behind a client URL for its peer URLs. It fails if that
	// node cannot become a member of this cluster, for example because it is one.
	PeerURLsOf(ctx context.Context, clientURL string) ([]string, error)
}

// Call is a request that a Route is to answer.
type Call struct {
	Keys    Keys
	Cluster Cluster
	// Arg is what follows the prefix of a pattern with a {key}, decoded.
	Arg string
	// Param returns a parameter of the query.
	Param func(name string) (string, bool)
	// Document reads the body, which is JSON.
	Document func(into any) error
	// Begin starts the request's timeout, and returns the context to work in.
	Begin func() (context.Context, context.CancelFunc, error)
	// Respond answers the request. An empty content type is left out.
	Respond func(status int, contentType string, body []byte)
}

func (c *Call) respondText(text string) {
	c.Respond(http.StatusOK, "text/plain; charset=utf-8", []byte(text))
}

func (c *Call) respondJSON(status int, doc any) error {
	text, err := json.Marshal(doc)
	if err == nil {
		c.Respond(status, jsonType, append(text, '\n'))
	}
	return err
}

const jsonType = "application/json"

// Route is one method of one path.
type Route struct {
	Pattern string // an exact path, or a prefix and {key}
	Method  string // GET includes HEAD
	Params  []string
	// Body says that the request has a body, and Mutates that it changes something.
	Body, Mutates bool
	// Keys says that it is about one key, which Call.Keys judges.
	Keys   bool
	Answer func(*Call) error
	// Refuse returns the document for an error, whose status has been decided, for
	// encoding/json. nil leaves that to kvd's problem documents.
	Refuse func(status int, p *api.Error) any
}

// Raftexample is the name of the dialect that package httpapi serves itself.
const Raftexample = "raftexample"

// Names are the names of all dialects.
var Names = []string{Raftexample, "raftd", "riot"}

// Routes returns the routes of a dialect; none for Raftexample.
func Routes(name string) []Route {
	switch name {
	case "raftd":
		return raftd()
	case "riot":
		return riot()
	}
	return nil
}
