package node

import (
	"github.com/kvd-io/kvd/internal/kvstore"
	"github.com/kvd-io/kvd/internal/raftnode"
)

// machine lets raftnode drive the store. It exists for the types of the views
// alone: an interface value must not hold a nil *kvstore.View.
type machine struct{ *kvstore.Store }

func (m machine) View() (raftnode.View, error) {
	v, err := m.Store.View()
	if err != nil {
		return nil, err
	}
	return v, nil
}

func (m machine) Durable() (raftnode.View, error) {
	v, err := m.Store.Durable()
	if v == nil || err != nil {
		return nil, err
	}
	return v, nil
}
