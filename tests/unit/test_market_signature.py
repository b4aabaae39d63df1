"""The signature of a call, by the example that Alibaba Cloud publishes."""

import hashlib

from springtide.twin.cloud_api.signature import Signed, sign


def test_the_published_example_has_the_published_signature() -> None:
    """ "V3 request body and signature mechanism", its fixed parameters."""
    headers = {
        "host": "ecs.cn-shanghai.aliyuncs.com",
        "x-acs-action": "RunInstances",
        "x-acs-content-sha256": hashlib.sha256(b"").hexdigest(),
        "x-acs-date": "2023-10-26T10:22:32Z",
        "x-acs-signature-nonce": "3156853299f313e23d1673dc12e1703d",
        "x-acs-version": "2014-05-26",
    }
    query = [("ImageId", "win2019_1809_x64_dtc_zh-cn_40G_alibase_20230811.vhd"), ("RegionId", "cn-shanghai")]
    request = Signed("POST", "/", query, headers, b"")
    signature = "06563a9e1b43f5dfe96b81484da74bceab24a1d853912eee15083a6f0f3283c0"
    assert sign(request, sorted(headers), "YourAccessKeySecret") == signature
