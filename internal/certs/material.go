package certs

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"
)

// maxFileBytes bounds a file. It is enough for a revocation list of about 400,000
// certificates.
const maxFileBytes = 16 << 20

// Files names the files of a Bundle. CA and CRL may be empty. Certificate, key, and
// authorities are PEM; a revocation list is PEM or DER.
type Files struct {
	Cert string // followed by intermediate certificates, if any
	Key  string
	CA   string // one or more authorities
	CRL  string // one or more lists, each signed by one of the authorities
}

const fileKinds = 4

func (f *Files) names() [fileKinds]string { return [...]string{f.Cert, f.Key, f.CA, f.CRL} }

// contents has the contents of the files, in the order of Files.names. It is nil for
// a file that has no name.
type contents [fileKinds][]byte

// read reads all files.
func (f *Files) read() (c contents, err error) {
	for i, name := range f.names() {
		if name == "" {
			continue
		}
		if c[i], err = readBounded(name); err != nil {
			return c, err
		}
	}
	return c, nil
}

func readBounded(name string) ([]byte, error) {
	file, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	data, err := io.ReadAll(io.LimitReader(file, maxFileBytes+1))
	if err = errors.Join(err, file.Close()); err != nil {
		return nil, err
	}
	if len(data) > maxFileBytes {
		return nil, fmt.Errorf("%s is larger than %d MiB", name, maxFileBytes>>20)
	}
	return data, nil
}

// fileState is what a file looks like without reading it.
type fileState struct {
	info    os.FileInfo
	size    int64
	changed time.Time
	missing bool
}

func stateOf(name string) fileState {
	info, err := os.Stat(name)
	if name == "" || err != nil {
		return fileState{missing: true}
	}
	return fileState{size: info.Size(), changed: info.ModTime(), info: info}
}

// same reports whether nothing suggests that the content has changed.
func (s fileState) same(o fileState) bool {
	return s.missing == o.missing && s.size == o.size && s.changed.Equal(o.changed) && (s.missing || os.SameFile(s.info, o.info))
}

// settleTime is longer than the coarsest clock of a file system. A file that changed
// within it may change again and still look the same.
const settleTime = 2 * time.Second

func (s fileState) unsettled() bool { return !s.missing && time.Since(s.changed).Abs() < settleTime }

// material is what the files say. It never changes: a new one replaces it.
type material struct {
	cert        *tls.Certificate // with its Leaf
	pool        *x509.CertPool
	authorities []*x509.Certificate
	revoked     revocations
}

// parse interprets the files together.
func (c *Config) parse(files contents) (*material, error) {
	cert, err := tls.X509KeyPair(files[0], files[1])
	if err != nil {
		return nil, fmt.Errorf("%s and %s: %w", c.Cert, c.Key, err)
	}
	m := &material{cert: &cert, pool: x509.NewCertPool()}
	if c.CA != "" {
		if m.authorities, err = parseAuthorities(files[2]); err != nil {
			return nil, fmt.Errorf("%s: %w", c.CA, err)
		}
	}
	for _, a := range m.authorities {
		m.pool.AddCert(a)
	}
	if c.CRL != "" {
		if m.revoked, err = parseRevocations(files[3], m.authorities); err != nil {
			return nil, fmt.Errorf("%s: %w", c.CRL, err)
		}
	}
	return m, c.judge(m)
}

// judge refuses a certificate that could not do its work (B4).
func (c *Config) judge(m *material) error {
	leaf := m.cert.Leaf
	for _, host := range c.Hosts {
		if err := leaf.VerifyHostname(host); err != nil {
			return fmt.Errorf("%s: certificate does not name %s, under which others reach this node: %w", c.Cert, host, err)
		}
	}
	if !usableFor(leaf, x509.ExtKeyUsageServerAuth) {
		return fmt.Errorf("%s: certificate is not for servers: its extended key usage lacks serverAuth", c.Cert)
	}
	if !c.Mutual {
		return nil
	}
	if !usableFor(leaf, x509.ExtKeyUsageClientAuth) {
		return fmt.Errorf("%s: certificate is not for clients: its extended key usage lacks clientAuth, which members need", c.Cert)
	}
	// The dates are not checked here. warn logs an expired certificate; the node
	// starts, because its operator may need it to replace the certificate.
	_, err := leaf.Verify(x509.VerifyOptions{
		Roots: m.pool, Intermediates: intermediates(m.cert), CurrentTime: leaf.NotBefore.Add(time.Second),
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	})
	var dates x509.CertificateInvalidError
	if err != nil && !(errors.As(err, &dates) && dates.Reason == x509.Expired) {
		return fmt.Errorf("%s: certificate is not signed by an authority in %s: %w", c.Cert, c.CA, err)
	}
	return nil
}

// usableFor reports whether the certificate may be used for the purpose. One without
// any extended key usage may be used for every purpose (RFC 5280, section 4.2.1.12).
func usableFor(cert *x509.Certificate, usage x509.ExtKeyUsage) bool {
	all := cert.ExtKeyUsage
	return len(all) == 0 && len(cert.UnknownExtKeyUsage) == 0 || slices.Contains(all, usage) || slices.Contains(all, x509.ExtKeyUsageAny)
}

// intermediates returns what follows the leaf in the certificate file.
func intermediates(cert *tls.Certificate) *x509.CertPool {
	pool := x509.NewCertPool()
	for _, der := range cert.Certificate[1:] {
		if c, err := x509.ParseCertificate(der); err == nil {
			pool.AddCert(c)
		}
	}
	return pool
}

// parseAuthorities reads certificates of authorities. A certificate without basic
// constraints is accepted: root certificates of X.509 version 1 have none.
func parseAuthorities(text []byte) (out []*x509.Certificate, err error) {
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("contains a %s among the certificates", block.Type)
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		if c.BasicConstraintsValid && !c.IsCA {
			return nil, fmt.Errorf("%q is not a certificate authority", c.Subject)
		}
		out = append(out, c)
	}
	if len(out) == 0 {
		return nil, errors.New("contains no PEM certificate")
	}
	return out, nil
}

// revocations has the revoked certificates, by the public key of their authority and
// their serial number. A name would not do: two authorities can have the same one.
type revocations struct {
	byIssuer   map[string]map[string]bool
	nextUpdate time.Time // the earliest of all lists; zero if none has one
}

func (r *revocations) size() (n int) {
	for _, serials := range r.byIssuer {
		n += len(serials)
	}
	return n
}

// has reports whether the issuer has revoked the certificate.
func (r *revocations) has(cert, issuer *x509.Certificate) bool {
	serials := r.byIssuer[string(issuer.RawSubjectPublicKeyInfo)]
	return serials[string(cert.SerialNumber.Bytes())]
}

// parseRevocations reads the lists, and refuses one that no authority signed (B3).
func parseRevocations(data []byte, authorities []*x509.Certificate) (r revocations, _ error) {
	lists, err := splitLists(data)
	if err != nil {
		return r, err
	}
	r.byIssuer = make(map[string]map[string]bool)
	for _, der := range lists {
		list, err := x509.ParseRevocationList(der)
		if err != nil {
			return r, err
		}
		issuer, err := signerOf(list, authorities)
		if err != nil {
			return r, err
		}
		r.add(issuer, list)
	}
	return r, nil
}

func (r *revocations) add(issuer *x509.Certificate, list *x509.RevocationList) {
	key := string(issuer.RawSubjectPublicKeyInfo)
	if r.byIssuer[key] == nil {
		r.byIssuer[key] = make(map[string]bool, len(list.RevokedCertificateEntries))
	}
	for _, e := range list.RevokedCertificateEntries {
		r.byIssuer[key][string(e.SerialNumber.Bytes())] = true
	}
	if next := list.NextUpdate; !next.IsZero() && (r.nextUpdate.IsZero() || next.Before(r.nextUpdate)) {
		r.nextUpdate = next
	}
}

// splitLists returns the lists in a file: those in PEM, or one in DER.
func splitLists(data []byte) (lists [][]byte, _ error) {
	if !bytes.Contains(data, []byte("-----BEGIN")) {
		return [][]byte{data}, nil
	}
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "X509 CRL" {
			return nil, fmt.Errorf("contains a %s, not a revocation list", block.Type)
		}
		lists = append(lists, block.Bytes)
	}
	if len(lists) == 0 {
		return nil, errors.New("contains no PEM revocation list")
	}
	return lists, nil
}

// signerOf returns the authority that signed the list.
func signerOf(list *x509.RevocationList, authorities []*x509.Certificate) (*x509.Certificate, error) {
	var problem error
	for _, a := range authorities {
		err := list.CheckSignatureFrom(a)
		if err == nil {
			return a, nil
		}
		// Another authority may have the same name and be the signer.
		if bytes.Equal(a.RawSubject, list.RawIssuer) {
			problem = err
		}
	}
	if problem != nil {
		return nil, fmt.Errorf("revocation list of %q is not signed by that authority: %w", list.Issuer, problem)
	}
	return nil, fmt.Errorf("revocation list of %q is not signed by any of the authorities", list.Issuer)
}
