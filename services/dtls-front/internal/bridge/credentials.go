package bridge

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
)

// Service is the name that a bridge's certificate has below the installation's domain.
const Service = "lwm2m-bridge"

// Certificates are the PEM files with which services prove who they are to each other (spec/access.md); all or none are set.
type Certificates struct {
	CA, Certificate, Key string
	// Domain of service names in certificates.
	Domain string
}

// Credentials returns those of the connection to the bridge: mTLS where files are named, none otherwise. The files are read
// for each handshake, so that new ones are used without a restart (AC-TLS-004).
func (c Certificates) Credentials() (credentials.TransportCredentials, error) {
	if c.CA == "" && c.Certificate == "" && c.Key == "" {
		return insecure.NewCredentials(), nil
	}
	if c.CA == "" || c.Certificate == "" || c.Key == "" {
		return nil, errors.New("TINYMLAAS_TLS_CERTIFICATE_FILE, _KEY_FILE and _CA_FILE are set together or not at all")
	}
	if _, err := c.own(nil); err != nil {
		return nil, err
	}
	return credentials.NewTLS(&tls.Config{
		MinVersion:           tls.VersionTLS12,
		GetClientCertificate: c.own,
		// The chain is checked below, against the authority as its file is now.
		InsecureSkipVerify: true,
		VerifyConnection:   c.verify,
	}), nil
}

func (c Certificates) own(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
	pair, err := tls.LoadX509KeyPair(c.Certificate, c.Key)
	if err != nil {
		return nil, fmt.Errorf("the certificate files can't be used: %w", err)
	}
	return &pair, nil
}

// verify admits only the bridge: a certificate of the authority, for servers, with the bridge's name (AC-TLS-002).
func (c Certificates) verify(state tls.ConnectionState) error {
	pem, err := os.ReadFile(c.CA)
	if err != nil {
		return err
	}
	roots, rest := x509.NewCertPool(), x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return fmt.Errorf("%s has no certificate", c.CA)
	}
	if len(state.PeerCertificates) == 0 {
		return errors.New("the bridge showed no certificate")
	}
	for _, certificate := range state.PeerCertificates[1:] {
		rest.AddCert(certificate)
	}
	name := Service + "." + c.Domain
	_, err = state.PeerCertificates[0].Verify(x509.VerifyOptions{DNSName: name, Roots: roots, Intermediates: rest})
	return err
}
