package httpapi

import (
	"context"
	"net/http"
	"strconv"

	"github.com/kvd-io/kvd/internal/api"
	"github.com/kvd-io/kvd/internal/limits"
	"github.com/kvd-io/kvd/internal/memberurl"
)

// memberList is the answer of GET /v1/members.
type memberList struct {
	ClusterID string       `json:"cluster_id"`
	Members   []api.Member `json:"members"`
}

// memberURLs is the body of PUT /v1/members/{id}. The member keeps the URLs of a list
// that is not given.
type memberURLs struct {
	PeerURLs   []string `json:"peer_urls"`
	ClientURLs []string `json:"client_urls"`
}

func checkMemberID(id uint64) error {
	if !limits.ValidMemberID(id) {
		return badRequest("a member id must be from 1 to %d", uint64(limits.MaxMemberID))
	}
	return nil
}

// memberID reads the id in a path.
func memberID(arg string) (uint64, error) {
	id, err := strconv.ParseUint(arg, 10, 64)
	if err != nil {
		return 0, badRequest("%.40q in the path is not a member id, a decimal number", arg)
	}
	return id, checkMemberID(id)
}

// normalizeURLs refuses URLs that a member cannot have, and puts the others into the
// form that the membership keeps.
func normalizeURLs(where string, urls *[]string) error {
	if len(*urls) == 0 {
		return nil
	}
	normal, err := memberurl.Normalize(*urls)
	if err != nil {
		return badRequest("%s: %v (for example, http://10.0.0.4:12379)", where, err)
	}
	*urls = normal
	return nil
}

func (s *Server) listMembers(x *exchange) error {
	return report(x, func(ctx context.Context) (memberList, error) {
		members, err := s.opts.Members.Members(ctx)
		return memberList{s.opts.Health.ClusterID(), members}, err
	})
}

// addMember answers POST /v1/members.
func (s *Server) addMember(x *exchange) error {
	var m api.NewMember
	if err := x.readDocument(&m); err != nil {
		return err
	}
	if err := checkNewMember(&m); err != nil {
		return err
	}
	ctx, cancel, err := x.signedContext()
	if err != nil {
		return err
	}
	defer cancel()
	added, err := s.opts.Members.AddMember(ctx, m)
	if err != nil {
		return err
	}
	x.markReplayed()
	x.set("Location", "/v1/members/"+strconv.FormatUint(added.ID, 10))
	return x.writeJSON(http.StatusCreated, added)
}

func checkNewMember(m *api.NewMember) error {
	if m.ID != 0 {
		if err := checkMemberID(m.ID); err != nil {
			return err
		}
	}
	if len(m.PeerURLs) == 0 {
		return badRequest("the field \"peer_urls\" must have at least one URL at which the other members reach the new one")
	}
	if err := normalizeURLs("the field \"peer_urls\"", &m.PeerURLs); err != nil {
		return err
	}
	return normalizeURLs("the field \"client_urls\"", &m.ClientURLs)
}

// updateMember answers PUT /v1/members/{id}.
func (s *Server) updateMember(x *exchange) error {
	id, err := memberID(x.arg)
	if err != nil {
		return err
	}
	var urls memberURLs
	if err := x.readDocument(&urls); err != nil {
		return err
	}
	if err := checkUpdate(&urls); err != nil {
		return err
	}
	ctx, cancel, err := x.signedContext()
	if err != nil {
		return err
	}
	defer cancel()
	m, err := s.opts.Members.UpdateMember(ctx, id, urls.PeerURLs, urls.ClientURLs)
	if err != nil {
		return err
	}
	x.markReplayed()
	return x.writeJSON(http.StatusOK, m)
}

func checkUpdate(urls *memberURLs) error {
	if urls.PeerURLs == nil && urls.ClientURLs == nil {
		return badRequest("the body must have \"peer_urls\", \"client_urls\", or both")
	}
	if urls.PeerURLs != nil && len(urls.PeerURLs) == 0 {
		return badRequest("the field \"peer_urls\" must have at least one URL")
	}
	if err := normalizeURLs("the field \"peer_urls\"", &urls.PeerURLs); err != nil {
		return err
	}
	return normalizeURLs("the field \"client_urls\"", &urls.ClientURLs)
}

// removeMember answers DELETE /v1/members/{id}.
func (s *Server) removeMember(x *exchange) error {
	id, err := memberID(x.arg)
	if err != nil {
		return err
	}
	return s.remove(x, id)
}

func (s *Server) remove(x *exchange, id uint64) error {
	ctx, cancel, err := x.signedContext()
	if err != nil {
		return err
	}
	defer cancel()
	if err := s.opts.Members.RemoveMember(ctx, id); err != nil {
		return err
	}
	x.markReplayed()
	x.WriteHeader(http.StatusNoContent)
	return nil
}

// promoteMember answers POST /v1/members/{id}/promote.
func (s *Server) promoteMember(x *exchange) error {
	id, err := memberID(x.arg)
	if err != nil {
		return err
	}
	ctx, cancel, err := x.signedContext()
	if err != nil {
		return err
	}
	defer cancel()
	m, err := s.opts.Members.PromoteMember(ctx, id)
	if err != nil {
		return err
	}
	x.markReplayed()
	return x.writeJSON(http.StatusOK, m)
}

func (s *Server) getLeader(x *exchange) error {
	leader, err := s.opts.Leadership.Leader()
	if err != nil {
		return err
	}
	return x.writeJSON(http.StatusOK, leader)
}

// transferLeader answers POST /v1/leader?to=ID.
func (s *Server) transferLeader(x *exchange) error {
	to, ok, err := x.query.Number("to", 1)
	if err != nil {
		return err
	}
	if !ok {
		return badRequest("the parameter \"to\" is missing; it is the id of the member that takes over leadership")
	}
	ctx, cancel, err := x.signedContext()
	if err != nil {
		return err
	}
	defer cancel()
	if err := s.opts.Leadership.TransferLeader(ctx, to); err != nil {
		return err
	}
	x.WriteHeader(http.StatusNoContent)
	return nil
}

func (s *Server) getStatus(x *exchange) error { return report(x, s.opts.Inspector.Status) }

func (s *Server) getCluster(x *exchange) error { return report(x, s.opts.Inspector.ClusterStatus) }

// report answers with what a function finds out within the timeout of the request.
func report[T any](x *exchange, find func(context.Context) (T, error)) error {
	ctx, cancel, err := x.context()
	if err != nil {
		return err
	}
	defer cancel()
	found, err := find(ctx)
	if err != nil {
		return err
	}
	return x.writeJSON(http.StatusOK, found)
}
