"""The API server as the two stand-ins of this folder read it: whole lists over one kept connection, as the administrator."""
import http.client, json, os, ssl

W, IP = os.environ["W"], os.environ["NODE_IP"]

class ApiServer:
    def __init__(self):
        context = ssl.create_default_context(cafile=f"{W}/pki/ca.crt")
        context.load_cert_chain(f"{W}/pki/admin.crt", f"{W}/pki/admin.key")
        self.connection = http.client.HTTPSConnection(IP, 16443, timeout=10, context=context)

    def list(self, path):
        """The items of a list, or None when the server cannot be asked at the moment."""
        return (self.request("GET", path) or {}).get("items")

    def merge(self, path, patch):
        return self.request("PATCH", path, json.dumps(patch), {"content-type": "application/merge-patch+json"})

    def request(self, method, path, body=None, headers={}):
        try:
            self.connection.request(method, path, body, headers)
            response = self.connection.getresponse()
            text = response.read()
            return json.loads(text) if response.status < 300 else None
        except (OSError, http.client.HTTPException):
            self.connection.close()                                     # the next request connects anew
            return None
